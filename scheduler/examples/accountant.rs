//! Prints ε of differentially private training, to be compared with other accountants
//! (`testnet/interop/dp_accounting.py`).
//!
//! ```text
//! accountant Q SIGMA STEPS DELTA                   one run
//! accountant DELTA: Q SIGMA STEPS  Q SIGMA STEPS…  several runs on the same data
//! accountant -                                     a line of either kind each, from standard input
//! ```
//!
//! Each answer is a line: ε, the order at which it was found, and ε in thousandths as the ledger has it.
#![allow(clippy::print_stdout, reason = "a program for a terminal")]

use std::io::BufRead;
use std::process::ExitCode;

use allmend_protocol::units::Decimal;
use allmend_scheduler::privacy::{Delta, Mechanism, ORDERS, RdpVector, accountant};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.as_slice() {
        [only] if only == "-" => std::io::stdin().lock().lines().try_for_each(|line| {
            let line = line.map_err(|error| error.to_string())?;
            answer(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        }),
        words => answer(words),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn answer(words: &[String]) -> Result<(), String> {
    let (delta, runs) = match words {
        [delta, runs @ ..] if delta.ends_with(':') && runs.len() % 3 == 0 => {
            let runs = runs.chunks_exact(3).map(|run| [&run[0], &run[1], &run[2]]).collect();
            (delta.trim_end_matches(':'), runs)
        }
        [q, sigma, steps, delta] => (delta.as_str(), vec![[q, sigma, steps]]),
        _ => return Err("expected Q SIGMA STEPS DELTA, or DELTA: Q SIGMA STEPS …".to_owned()),
    };
    let delta = Delta::new(decimal(delta)?).map_err(|error| error.to_string())?;
    let mut nats = [0.0; ORDERS.len()];
    let mut vector = RdpVector::ZERO;
    for [q, sigma, steps] in runs {
        let number = |text: &str| text.parse::<f64>().map_err(|error| format!("{text}: {error}"));
        let mechanism = Mechanism::new(number(q)?, number(sigma)?).map_err(|e| e.to_string())?;
        let steps: u32 = steps.parse().map_err(|error| format!("{steps}: {error}"))?;
        for (sum, one) in nats.iter_mut().zip(mechanism.rdp()) {
            *sum += if steps == 0 { 0.0 } else { one * f64::from(steps) };
        }
        vector = vector.plus(&mechanism.vector().times(steps));
    }
    let (epsilon, order) = accountant::epsilon(&nats, delta);
    let order = order.map_or("-".to_owned(), |order| order.to_string());
    println!("{epsilon:.12} {order} {}", vector.milli_epsilon(delta));
    Ok(())
}

/// A number as people write it, e.g. `1e-5` or `0.001`.
fn decimal(text: &str) -> Result<Decimal, String> {
    let wrong = || format!("{text} is not a number like 1e-5 or 0.001");
    let (digits, exp10) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let exp10: i32 = exp10.parse().map_err(|_| wrong())?;
    let mantissa = format!("{whole}{fraction}").parse().map_err(|_| wrong())?;
    let places = i32::try_from(fraction.len()).map_err(|_| wrong())?;
    let exp10 = i8::try_from(exp10 - places).map_err(|_| wrong())?;
    Ok(Decimal { mantissa, exp10 })
}
