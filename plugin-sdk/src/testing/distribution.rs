/// Whether counts are what independent draws with these weights give, by Pearson's chi-square test: draws that do have
/// the weights fail it once in about 10,000 times. With a fixed seed the answer is always the same.
///
/// Each weight should let its count expect 5 or more. The critical value is Wilson and Hilferty's approximation ("The
/// distribution of chi-square", PNAS 17, 1931).
#[must_use]
pub fn fits(counts: &[u32], weights: &[u32]) -> bool {
    assert_eq!(counts.len(), weights.len(), "one count a weight");
    let all_counts: f64 = counts.iter().copied().map(f64::from).sum();
    let all_weights: f64 = weights.iter().copied().map(f64::from).sum();
    let chi_square: f64 = counts
        .iter()
        .zip(weights)
        .map(|(&count, &weight)| {
            let expected = all_counts * f64::from(weight) / all_weights;
            (f64::from(count) - expected).powi(2) / expected
        })
        .sum();
    let freedom = counts.len() as f64 - 1.0;
    let spread = 2.0 / (9.0 * freedom);
    const NORMAL_QUANTILE: f64 = 3.719; // of 0.9999
    chi_square < freedom * (1.0 - spread + NORMAL_QUANTILE * spread.sqrt()).powi(3)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn even_counts_fit_even_weights() {
        assert!(fits(&[1003, 985, 1012], &[1, 1, 1]));
    }

    #[test]
    fn a_tenth_more_at_one_of_ten_does_not_fit() {
        let mut counts = [10_000; 10];
        counts[3] = 11_000;
        assert!(!fits(&counts, &[1; 10]));
    }

    #[test]
    fn counts_swapped_against_their_weights_do_not_fit() {
        assert!(fits(&[1000, 2000, 3000], &[1, 2, 3]));
        assert!(!fits(&[2000, 1000, 3000], &[1, 2, 3]));
    }
}
