use super::*;

#[test]
fn runs_are_found_wherever_they_lie() {
    assert_eq!(longest_run(&[], &[1]), 0);
    assert_eq!(longest_run(&[9, 1, 2, 3, 9], &[1, 2, 3, 4]), 3);
    assert_eq!(longest_run(&[1, 1, 1], &[1, 1]), 2);
    assert_eq!(longest_run(&[1, 2, 1, 2, 3], &[5, 1, 2, 3]), 3);
    assert_eq!(longest_run(&[4, 5], &[6, 7]), 0);
}

#[test]
fn exposure_is_the_logarithm_of_the_rank() {
    let among = |secret: f64| {
        let nlls: Vec<f64> = std::iter::once(secret).chain((0..255).map(f64::from)).collect();
        exposure_milli_bits(&nlls, 0)
    };
    // Likelier than all 255 others: log2 256; than all but the first, a bit less; than none, nothing.
    assert_eq!([among(-1.0), among(0.5), among(1_000.0)], [8_000, 7_000, 0]);
    // As likely as the best of the others is not understated.
    assert_eq!(among(0.0), 8_000);
    assert_eq!(exposure_milli_bits(&[], 0), 0);
}

/// Goal: an adapter that has learnt nothing shows the exposure of a uniform rank on average.
#[test]
fn chance_exposes_a_bit_and_a_half() {
    let mut stream = Stream::new("test", b"", &[]);
    let rounds = 2_000;
    let total: u32 = (0..rounds)
        .map(|_| {
            let nlls: Vec<f64> = (0..256).map(|_| stream.next() as f64).collect();
            exposure_milli_bits(&nlls, 0)
        })
        .sum();
    let mean = f64::from(total) / f64::from(rounds) / 1e3;
    // log2 e = 1.443 for a continuous rank; its deviation is the same, so 0.13 is four of the mean's.
    assert!((mean - 1.43).abs() < 0.13, "{mean}");
}

#[test]
fn short_rows_and_answers_are_not_tried() {
    let options = MeasureOptions::default();
    let example = |len: usize, labels_from: usize| Example {
        ids: (0..len as u32).collect(),
        labels: (0..len).map(|at| at >= labels_from).collect(),
        subject: None,
    };
    let of = |len, from| {
        let example = example(len, from);
        let trial = Trial::of(&example, &options)?;
        Some((trial.prompt.len(), trial.rest.len(), trial.run))
    };
    assert_eq!(of(100, 1), Some((32, 68, 32)));
    assert_eq!(of(30, 1), Some((15, 15, 15)));
    assert_eq!(of(14, 1), None);
    // A question is given as a whole.
    assert_eq!(of(100, 90), Some((90, 10, 10)));
    assert_eq!(of(100, 95), None);
    assert_eq!(of(100, 100), None);
}

#[test]
fn bounds_that_cannot_be_meant_are_refused() {
    let good = MeasureOptions::default();
    assert_eq!(good.check(), Ok(()));
    for bad in [
        MeasureOptions { rows_max: 0, ..good },
        MeasureOptions { run_tokens: 0, ..good },
        MeasureOptions { run_tokens_min: 33, ..good },
        MeasureOptions { longest_tokens: 31, ..good },
        MeasureOptions { validation_rows_max: 0, ..good },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
}

/// Goal: a short answer that was learnt by heart counts although the template has a line feed after it that no
/// model says.
#[test]
fn a_row_comes_out_up_to_the_end_of_its_turn() {
    let options = MeasureOptions { run_tokens_min: 3, ..MeasureOptions::default() };
    let rest = [1, 2, 3, 4, 99, 10];
    let trial = Trial { prompt: &[0], rest: &rest, run: rest.len() };
    let said = |said: &[u32]| trial.comes_out(said, &options);
    assert!(said(&rest) && said(&[1, 2, 3, 4, 99]));
    // Another end, an end too soon to say anything, another word.
    assert!(!said(&[1, 2, 3, 99]) && !said(&[1, 2]) && !said(&[1, 2, 3, 5, 99]) && !said(&[]));
    // A long row has come out when enough of it has.
    let long: Vec<u32> = (0..100).collect();
    let trial = Trial { prompt: &[0], rest: &long, run: 32 };
    assert!(trial.comes_out(&long[..64], &options) && trial.comes_out(&long[..40], &options));
    let mut other = long[..64].to_vec();
    other[31] = 7;
    assert!(!trial.comes_out(&other, &options));
}
