//! The median and the quartiles of many measurements.

use std::fmt::{Display, Formatter, Result};

/// Median and quartiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub quartiles: (f64, f64),
}

impl Spread {
    /// Returns the spread of at least one measurement.
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        // Interpolates linearly between two values.
        let at = |share: f64| {
            let place = share * (values.len() - 1) as f64;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Spread { median: at(0.5), quartiles: (at(0.25), at(0.75)) }
    }
}

impl Display for Spread {
    /// Writes the values with the format's precision.
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        let decimals = out.precision().unwrap_or(0);
        let (low, high) = self.quartiles;
        write!(out, "{:.decimals$} ({low:.decimals$} to {high:.decimals$})", self.median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_between_the_middle_ones() {
        let expected = Spread { median: 2.5, quartiles: (1.75, 3.25) };
        assert_eq!(Spread::of(vec![4.0, 1.0, 3.0, 2.0]), expected);
        assert_eq!(format!("{expected:.2}"), "2.50 (1.75 to 3.25)");
        assert_eq!(Spread::of(vec![7.0]), Spread { median: 7.0, quartiles: (7.0, 7.0) });
    }
}
