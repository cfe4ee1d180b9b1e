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
    accounts.close(|_| None);
    // The first owner had read nothing of it, as it turns out when another reads.
    accounts.begin();
    assert!(!accounts.share(&key(1), counts(0, 0)));
    accounts.recorded(7);
    assert_eq!(accounts.own(&key(2), counts(0, 5_000)), counts(0, 0));
    accounts.close(|_| None);
    accounts.begin();
    accounts.share(&key(1), counts(0, 0));
    accounts.recorded(7);
    assert_eq!(accounts.own(&key(2), counts(0, 5_300)), counts(0, 300));
}

#[test]
fn a_peak_of_sockets_leaves_no_room_behind() {
    let mut accounts = Accounts::default();
    accounts.begin();
    for cookie in 0..100_000 {
        accounts.recorded(cookie);
    }
    accounts.close(|_| None);
    assert!(accounts.sockets.capacity() >= 100_000);
    accounts.begin();
    accounts.recorded(7);
    accounts.close(|_| None);
    assert!(accounts.sockets.contains_key(&7) && accounts.sockets.len() == 1);
    assert!(accounts.sockets.capacity() <= SPARE_ENTRIES, "{}", accounts.sockets.capacity());
}

#[test]
fn impossible_figures_are_refused() {
    let mut accounts = Accounts::default();
    accounts.begin();
    assert!(!accounts.share(&key(1), counts(u64::MAX - 5, 0)));
    assert_eq!(accounts.settle(&key(1)), Counts::default());
    assert_eq!(accounts.own(&key(2), counts(0, u64::MAX / 2)), Counts::default());
    assert_eq!(accounts.refused(), 2);
}

#[test]
fn a_quiet_account_is_closed_and_opens_anew() {
    let mut accounts = Accounts::default();
    for reading in 0..=u64::from(QUIET_READINGS) {
        accounts.begin();
        accounts.share(&key(1), counts(400, 0));
        accounts.recorded(7);
        accounts.own(&key(2), counts(100, 0));
        let more = accounts.settle(&key(1));
        assert_eq!(more, if reading == 0 { counts(400, 0) } else { Counts::default() });
        accounts.recorded(7);
        accounts.own(&key(2), counts(100, 0));
        let mut taken_out = 0;
        let late = accounts.close(|_| {
            taken_out += 1;
            // A little has been added since it was read.
            Some(Share { traffic: counts(500, 0), ..Share::default() })
        });
        assert_eq!(taken_out, usize::from(reading == u64::from(QUIET_READINGS)));
        assert!(late.iter().all(|(of, _, more)| *of == key(1) && *more == counts(100, 0)));
        assert_eq!(late.len(), taken_out);
    }
    accounts.begin();
    assert!(accounts.share(&key(1), counts(200, 0)));
    accounts.recorded(7);
    assert_eq!(accounts.own(&key(2), counts(100, 0)), Counts::default());
    assert_eq!(accounts.settle(&key(1)), counts(200, 0));
    accounts.close(|_| None);
    // Nothing is left once the kernel knows neither.
    accounts.begin();
    accounts.close(|_| None);
    assert!(accounts.sockets.is_empty());
}

#[test]
fn the_total_of_a_socket_keeps_closed_accounts() {
    let mut accounts = Accounts::default();
    for _ in 0..=QUIET_READINGS {
        accounts.begin();
        accounts.share(&key(1), counts(400, 200));
        accounts.own(&key(2), counts(100, 0));
        accounts.settle(&key(1));
        assert_eq!(accounts.total(7, &counts(100, 0)), counts(500, 200));
        accounts.close(|_| Some(Share { traffic: counts(500, 200), ..Share::default() }));
    }
    // The account is closed with what was added to it after it was read; another one begins at nothing.
    accounts.begin();
    accounts.own(&key(2), counts(100, 0));
    assert_eq!(accounts.total(7, &counts(100, 0)), counts(600, 200));
    accounts.close(|_| None);
    accounts.begin();
    accounts.share(&key(1), counts(300, 0));
    accounts.own(&key(2), counts(100, 0));
    assert_eq!(accounts.total(7, &counts(100, 0)), counts(900, 200));
    // Bytes of the record are on their way to an account that was read before.
    accounts.own(&key(2), Counts::default());
    assert_eq!(accounts.total(7, &Counts::default()), counts(900, 200));
}

#[test]
fn a_share_is_not_credited_again_after_its_bytes_were() {
    let mut accounts = Accounts::default();
    accounts.begin();
    assert_eq!(accounts.own(&key(1), counts(100, 0)), counts(100, 0));
    accounts.close(|_| None);
    for owner in [2, 3, 3] {
        accounts.begin();
        accounts.share(&key(1), counts(60, 0));
        if owner == 3 {
            accounts.share(&key(2), counts(40, 0));
        }
        let own = if owner == 2 { counts(40, 0) } else { Counts::default() };
        assert_eq!(accounts.own(&key(owner), own), Counts::default());
        assert_eq!(accounts.settle(&key(1)), Counts::default());
        assert_eq!(accounts.settle(&key(2)), Counts::default());
        accounts.close(|_| None);
    }
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
            let shared = || (0..).zip(shares).filter(|(_, share)| *share > 0);
            for (user, share) in shared() {
                accounts.share(&key(user), counts(share, 0));
            }
            accounts.recorded(7);
            credited += accounts.own(&key(owner), counts(total - apart, 0)).sent.bytes;
            for (user, _) in shared() {
                credited += accounts.settle(&key(user)).sent.bytes;
            }
            // What the kernel held of a user begins at nothing after it was taken out.
            let late = accounts.close(|closed| {
                let held = shares.get_mut(closed.owner.tgid as usize)?;
                let traffic = counts(std::mem::take(held), 0);
                Some(Share { traffic, ..Share::default() })
            });
            prop_assert!(late.is_empty());
            prop_assert_eq!(credited, total);
        }
        prop_assert_eq!(accounts.refused(), 0);
    }
}
