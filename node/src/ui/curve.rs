//! A curve in one line of text.

/// Eight heights of a block.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The last of `values` as at most `width` blocks, scaled between the least and the most of all: older
/// values are averaged so that the whole curve fits.
pub fn sparkline(values: &[f64], width: usize) -> String {
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    if finite.is_empty() || width == 0 {
        return String::new();
    }
    let bins = finite.len().min(width);
    let means: Vec<f64> = (0..bins)
        .map(|bin| {
            let (from, to) = (bin * finite.len() / bins, (bin + 1) * finite.len() / bins);
            finite[from..to].iter().sum::<f64>() / (to - from) as f64
        })
        .collect();
    let least = means.iter().copied().fold(f64::INFINITY, f64::min);
    let most = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let span = (most - least).max(f64::MIN_POSITIVE);
    means
        .iter()
        .map(|mean| {
            let height = ((mean - least) / span * 7.0).round();
            BLOCKS[(height as usize).min(7)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_keep_their_shape_and_width() {
        assert_eq!(sparkline(&[], 10), "");
        assert_eq!(sparkline(&[f64::NAN], 10), "");
        assert_eq!(sparkline(&[3.0, 2.0, 1.0], 10), "█▅▁");
        assert_eq!(sparkline(&[1.0; 4], 10).chars().count(), 4);
        let falling: Vec<f64> = (0..1_000).map(|x| f64::from(1_000 - x)).collect();
        let line: Vec<char> = sparkline(&falling, 8).chars().collect();
        assert_eq!(line.len(), 8);
        assert!(line.windows(2).all(|pair| pair[0] > pair[1]));
    }
}
