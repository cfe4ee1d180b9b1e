//! The numbers of namespaces. Each number belongs to one namespace at a time, and the one that has been free
//! longest is assigned first.

use crate::model::Namespace;
use std::collections::VecDeque;

/// The free numbers.
#[derive(Debug)]
pub(super) struct Numbers(VecDeque<u8>);

impl Numbers {
    /// The number of assignable numbers: all of a `Namespace` except the session's own and one in reserve.
    pub(super) const COUNT: u8 = 254;

    /// Takes the number that has been free longest, or returns `None` if there is none.
    pub(super) fn take(&mut self) -> Option<Namespace> {
        self.0.pop_front().map(Namespace)
    }

    /// Takes a particular number.
    pub(super) fn reserve(&mut self, number: Namespace) {
        self.0.retain(|&free| free != number.0);
    }

    /// Frees a number. Data that still has it expires before the number is assigned again, since the others
    /// are assigned first.
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
