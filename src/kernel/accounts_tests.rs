#![allow(clippy::unwrap_used, clippy::panic, reason = "so do tests fail")]

use super::*;
use proptest::prelude::*;

fn process(tgid: u32) -> Process {
    Process { start_ns: 1, tgid, padding: 0 }
}

fn key(tgid: u32) -> ShareKey {
    ShareKey { owner: process(tgid), cookie: 7 }
}

fn counts(sent: u64, received: u64) -> Counts {
    let way = |bytes| Way { bytes, packets: bytes / 100 };
    Counts { sent: way(sent), received: way(received) }
}

#[test]
fn what_an_owner_was_credited_with_is_not_the_next_owners() {
    let mut accounts = Accounts::default();
    accounts.begin();
    accounts.recorded(7);
    assert_eq!(accounts.own(&key(1), counts(0, 5_000)), counts(0, 5_000));
    accounts.close();
    // The first owner had read nothing of it, as it turns out when another reads.
    accounts.begin();
    assert_eq!(accounts.share(&key(1), counts(0, 0)), counts(0, 0));
    accounts.recorded(7);
    assert_eq!(accounts.own(&key(2), counts(0, 5_000)), counts(0, 0));
    accounts.close();
    accounts.begin();
    accounts.share(&key(1), counts(0, 0));
    accounts.recorded(7);
    assert_eq!(accounts.own(&key(2), counts(0, 5_300)), counts(0, 300));
}

#[test]
fn impossible_figures_are_refused() {
    let mut accounts = Accounts::default();
    accounts.begin();
    assert_eq!(accounts.share(&key(1), counts(u64::MAX - 5, 0)), Counts::default());
    assert_eq!(accounts.own(&key(2), counts(0, u64::MAX / 2)), Counts::default());
    assert_eq!(accounts.refused(), 2);
}

#[test]
fn a_quiet_account_is_closed_and_opens_anew() {
    let mut accounts = Accounts::default();
    for reading in 0..=u64::from(QUIET_READINGS) {
        accounts.begin();
        let more = accounts.share(&key(1), counts(400, 0));
        assert_eq!(more, if reading == 0 { counts(400, 0) } else { Counts::default() });
        accounts.recorded(7);
        accounts.own(&key(2), counts(100, 0));
        assert_eq!(accounts.close().len(), usize::from(reading == u64::from(QUIET_READINGS)));
    }
    accounts.begin();
    assert_eq!(accounts.share(&key(1), counts(200, 0)), counts(200, 0));
    accounts.recorded(7);
    assert_eq!(accounts.own(&key(2), counts(100, 0)), Counts::default());
    accounts.close();
    // Nothing is left once the kernel knows neither.
    accounts.begin();
    accounts.close();
    assert!(accounts.sockets.is_empty());
}

proptest! {
    /// Whatever changes of hands a socket sees and whenever it is read, all of its bytes are credited once.
    #[test]
    fn all_is_credited_once(
        steps in prop::collection::vec((0u32..4, 0u64..2_000, any::<bool>(), 0u64..3_000), 1..60)
    ) {
        let (mut accounts, mut total, mut apart) = (Accounts::default(), 0, 0);
        let mut shares = [0u64; 4];
        let (mut owner, mut credited) = (0, 0);
        for (user, bytes, is_read, unclaimed) in steps {
            total += bytes;
            if user != owner {
                // What came after the last call of the owner is the next one's.
                let part = (total - apart).saturating_sub(unclaimed);
                shares[owner as usize] += part;
                apart += part;
                owner = user;
            }
            if !is_read {
                continue;
            }
            accounts.begin();
            for (user, share) in (0..).zip(shares).filter(|(_, share)| *share > 0) {
                credited += accounts.share(&key(user), counts(share, 0)).sent.bytes;
            }
            accounts.recorded(7);
            credited += accounts.own(&key(owner), counts(total - apart, 0)).sent.bytes;
            accounts.close();
            prop_assert!(credited <= total + shares.iter().sum::<u64>());
        }
        prop_assert_eq!(accounts.refused(), 0);
    }
}
