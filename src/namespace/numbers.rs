//! The numbers that namespaces get: each is at one namespace at a time, and the one that was free longest comes first.

use crate::model::Namespace;
use std::collections::VecDeque;

/// The numbers that are free.
#[derive(Debug)]
pub(super) struct Numbers(VecDeque<u8>);

impl Numbers {
    /// How many there are: all of a `Namespace` but the session's own, and one kept back.
    pub(super) const COUNT: u8 = 254;

    /// The number that has been free longest, or `None`.
    pub(super) fn take(&mut self) -> Option<Namespace> {
        self.0.pop_front().map(Namespace)
    }

    /// Takes a certain number.
    pub(super) fn reserve(&mut self, number: Namespace) {
        self.0.retain(|&free| free != number.0);
    }

    /// Frees a number. What still bears it is forgotten over the time that the others take to come round.
    pub(super) fn give_back(&mut self, number: Namespace) {
        self.0.push_back(number.0);
    }
}

impl Default for Numbers {
    fn default() -> Numbers {
        Numbers((1..=Self::COUNT).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_free_number_comes_first() {
        let mut numbers = Numbers::default();
        let all: Vec<_> = std::iter::from_fn(|| numbers.take()).collect();
        assert_eq!(all, (1..=254).map(Namespace).collect::<Vec<_>>());
        assert!(!all.contains(&Namespace::HOME));
        numbers.give_back(Namespace(9));
        numbers.give_back(Namespace(3));
        assert_eq!(
            [numbers.take(), numbers.take(), numbers.take()],
            [Some(Namespace(9)), Some(Namespace(3)), None]
        );
    }
}
