//! Aligned tables that fit the terminal.
//!
//! Cells are made printable when they are added. Without a width (output is not a terminal)
//! nothing is cut, so that scripts see whole values; they should still prefer `--json`.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::human::printable;
use super::terminal::Style;

/// Two spaces part columns: enough for the eye, and `cut -w` or awk still work.
const GAP: usize = 2;
/// A column is not squeezed below this many characters; the line overflows instead.
const SQUEEZED_MIN: usize = 8;

/// On which side a column's text lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// One cell: text and how to colour it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A coloured cell.
    pub fn styled(text: impl AsRef<str>, style: Style) -> Self {
        // A line break inside a cell would break the row.
        let text = printable(text.as_ref()).replace(['\n', '\t'], " ");
        Self { text, style }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::Plain)
    }
}

#[derive(Clone, Debug)]
struct Column {
    title: &'static str,
    align: Align,
    squeezable: bool,
}

/// A table under construction.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without columns.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a column whose cells are never cut.
    #[must_use]
    pub fn column(mut self, title: &'static str, align: Align) -> Self {
        self.columns.push(Column { title, align, squeezable: false });
        self
    }

    /// Adds a left-aligned column that may be cut to make the table fit.
    #[must_use]
    pub fn squeezable(mut self, title: &'static str) -> Self {
        self.columns.push(Column { title, align: Align::Left, squeezable: true });
        self
    }

    /// Adds a row; missing cells are empty, surplus ones are dropped.
    pub fn row<C: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = C>) {
        let mut row: Vec<Cell> = cells.into_iter().map(Into::into).collect();
        row.resize_with(self.columns.len(), || Cell::from(""));
        self.rows.push(row);
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as lines.
    ///
    /// # Units
    /// `width` in terminal columns; `None` never cuts.
    #[must_use]
    pub fn render(&self, width: Option<usize>, colour: bool) -> String {
        let widths = self.widths(width);
        let mut text = String::new();
        let titles: Vec<Cell> =
            self.columns.iter().map(|c| Cell::styled(c.title, Style::Strong)).collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for (index, ((cell, column), &width)) in
                row.iter().zip(&self.columns).zip(&widths).enumerate()
            {
                let shown = cut(&cell.text, width);
                let padding = " ".repeat(width.saturating_sub(shown.width()));
                let painted = cell.style.paint(&shown, colour);
                if index > 0 {
                    line.push_str(&" ".repeat(GAP));
                }
                match column.align {
                    Align::Left => line.extend([painted, padding]),
                    Align::Right => line.extend([padding, painted]),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn widths(&self, available: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                let cells = self.rows.iter().filter_map(|row| row.get(index));
                cells.map(|c| c.text.width()).max().unwrap_or(0).max(column.title.width())
            })
            .collect();
        let Some(available) = available else { return widths };
        loop {
            let total = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
            let Some(excess) = total.checked_sub(available).filter(|excess| *excess > 0) else {
                return widths;
            };
            // Squeeze the widest first, but not below the next: that keeps the short ones whole.
            let squeezable =
                |index: &usize| self.columns[*index].squeezable && widths[*index] > SQUEEZED_MIN;
            let Some(widest) =
                (0..widths.len()).filter(squeezable).max_by_key(|&index| widths[index])
            else {
                return widths;
            };
            let next = (0..widths.len())
                .filter(squeezable)
                .map(|index| widths[index])
                .filter(|width| *width < widths[widest])
                .max()
                .unwrap_or(SQUEEZED_MIN);
            let room = widths[widest] - next.max(SQUEEZED_MIN);
            widths[widest] -= excess.min(room.max(1));
        }
    }
}

/// `text` in at most `width` columns, ending in `…` if something was cut.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut shown = String::new();
    let mut used = 1; // for the ellipsis
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        shown.push(c);
    }
    shown.push('…');
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nodes() -> Table {
        let mut table =
            Table::new().squeezable("NODE").column("SLOTS", Align::Right).squeezable("MODELS");
        table.row(["zurich-1", "4", "smollm2-135m"]);
        table.row(["a-node-with-a-rather-long-name", "12", "smollm2-135m, apertus-8b"]);
        table
    }

    #[test]
    fn aligns_columns() {
        let text = nodes().render(None, false);
        assert_eq!(
            text,
            "NODE                            SLOTS  MODELS\n\
             zurich-1                            4  smollm2-135m\n\
             a-node-with-a-rather-long-name     12  smollm2-135m, apertus-8b\n"
        );
    }

    #[test]
    fn fits_the_width_by_cutting_the_widest() {
        let text = nodes().render(Some(50), false);
        assert!(text.lines().all(|line| line.width() <= 50), "{text}");
        assert!(text.contains('…') && text.contains("zurich-1") && text.contains("smollm2-135m\n"));
    }

    #[test]
    fn short_and_long_rows_are_made_to_fit() {
        let mut table = Table::new().column("A", Align::Left).column("B", Align::Left);
        table.row(["only"]);
        table.row(["1", "2", "3"]);
        assert_eq!(table.render(None, false), "A     B\nonly\n1     2\n");
    }

    proptest! {
        #[test]
        fn any_cells_fit_or_reach_the_minimum(
            rows in proptest::collection::vec(proptest::collection::vec(".{0,60}", 3), 0..6),
            width in 0usize..120,
        ) {
            let mut table = Table::new().squeezable("ONE").squeezable("TWO").squeezable("THREE");
            for row in &rows {
                table.row(row);
            }
            let text = table.render(Some(width), false);
            prop_assert_eq!(text.lines().count(), rows.len() + 1);
            let limit = width.max(3 * SQUEEZED_MIN + 2 * GAP);
            prop_assert!(text.lines().all(|line| line.width() <= limit));
        }
    }
}
