#![allow(clippy::unwrap_used, clippy::panic, reason = "so do tests fail")]

use super::*;
use proptest::prelude::*;

fn process(tgid: u32) -> Process {
    Process { start_ns: 1, tgid, padding: 0 }
}

/// Returns the key of a process's share in a period.
fn key(tgid: u32, period: u32) -> ShareKey {
    ShareKey { owner: process(tgid), cookie: 7, period, padding: 0 }
}

fn counts(sent: u64, received: u64) -> Counts {
    let direction = |bytes| DirectionCounters { bytes, packets: bytes / 100 };
    Counts { sent: direction(sent), received: direction(received) }
}

#[test]
fn what_an_owner_was_credited_with_is_not_the_next_owners() {
    let mut accounts = Accounts::default();
    accounts.begin();
    accounts.recorded(7);
    assert_eq!(accounts.own(7, process(1), counts(0, 5_000)), counts(0, 5_000));
    accounts.close();
    // The first owner had read none of it, which shows when another process reads.
    accounts.begin();
    assert!(!accounts.share(&key(1, 0), counts(0, 0), false));
    accounts.recorded(7);
    assert_eq!(accounts.own(7, process(2), counts(0, 5_000)), counts(0, 0));
    accounts.close();
    accounts.begin();
    accounts.share(&key(1, 0), counts(0, 0), false);
    accounts.recorded(7);
    assert_eq!(accounts.own(7, process(2), counts(0, 5_300)), counts(0, 300));
}

#[test]
fn a_peak_of_sockets_leaves_no_room_behind() {
    let mut accounts = Accounts::default();
    accounts.begin();
    for cookie in 0..100_000 {
        accounts.recorded(cookie);
    }
    accounts.close();
    assert!(accounts.sockets.capacity() >= 100_000);
    accounts.begin();
    accounts.recorded(7);
    accounts.close();
    assert!(accounts.sockets.contains_key(&7) && accounts.sockets.len() == 1);
    assert!(accounts.sockets.capacity() <= SPARE_ENTRIES, "{}", accounts.sockets.capacity());
}

#[test]
fn impossible_figures_are_refused() {
    let mut accounts = Accounts::default();
    accounts.begin();
    assert!(!accounts.share(&key(1, 0), counts(u64::MAX - 5, 0), false));
    assert_eq!(accounts.credit(7, process(1)), Counts::default());
    assert_eq!(accounts.own(7, process(2), counts(0, u64::MAX / 2)), Counts::default());
    assert_eq!(accounts.refused(), 2);
}

#[test]
fn an_account_goes_on_from_period_to_period_and_is_closed_when_there_is_none() {
    let mut accounts = Accounts::default();
    let read = |accounts: &mut Accounts, shares: &[(u32, u64, bool)]| {
        accounts.begin();
        for &(period, bytes, is_over) in shares {
            accounts.share(&key(1, period), counts(bytes, 0), is_over);
        }
        accounts.own(7, process(2), counts(100, 0));
        let more = accounts.credit(7, process(1)).sent.bytes;
        accounts.close();
        more
    };
    assert_eq!(read(&mut accounts, &[(3, 400, false)]), 400);
    assert_eq!(read(&mut accounts, &[(4, 100, false), (3, 500, false)]), 200);
    assert_eq!(read(&mut accounts, &[(3, 600, true), (4, 100, false)]), 100);
    // The deletion in the kernel failed.
    assert_eq!(read(&mut accounts, &[(4, 300, false), (3, 600, true)]), 200);
    assert_eq!(read(&mut accounts, &[(4, 300, true)]), 0);
    assert_eq!(read(&mut accounts, &[(4, 300, true)]), 0, "nor this");
    assert!(accounts.is_shared(7));
    assert_eq!(read(&mut accounts, &[]), 0);
    assert!(!accounts.is_shared(7), "it is closed");
    assert_eq!(read(&mut accounts, &[(6, 200, false)]), 200);
    assert!(accounts.is_shared(7));
    assert_eq!(read(&mut accounts, &[(6, 250, true)]), 50);
    assert_eq!(read(&mut accounts, &[]), 0);
    assert!(!accounts.is_shared(7));
    // No account is left once the kernel has neither a record nor a share.
    accounts.begin();
    accounts.close();
    assert!(accounts.sockets.is_empty());
}

/// After a takeover, the share of the previous owner includes its part of the record. A record that is being
/// changed does not show the takeover.
#[test]
fn nothing_is_credited_while_the_record_is_being_changed() {
    let mut accounts = Accounts::default();
    accounts.begin();
    assert_eq!(accounts.own(7, process(1), counts(1_000, 0)), counts(1_000, 0));
    accounts.close();
    for period in [0, 1] {
        accounts.begin();
        // This holds also if the period is over and the share is read only once.
        accounts.share(&key(1, 0), counts(1_500, 0), period == 1);
        accounts.changing(7);
        assert!(accounts.is_changing(7));
        accounts.close();
        assert!(accounts.is_shared(7));
    }
    accounts.begin();
    assert!(!accounts.is_changing(7));
    assert_eq!(accounts.own(7, process(2), counts(200, 0)), counts(200, 0));
    assert_eq!(accounts.credit(7, process(1)), counts(500, 0));
    accounts.close();
    assert!(!accounts.is_shared(7));
}

/// Part of the bytes that the present owner was credited with is in the record when its account is closed.
#[test]
fn an_owner_keeps_what_it_was_credited_with_when_its_account_is_closed() {
    for readings_between in [1, 2, 5] {
        let mut accounts = Accounts::default();
        accounts.begin();
        accounts.share(&key(1, 0), counts(1_000, 0), true);
        accounts.share(&key(2, 0), counts(10, 0), true);
        assert_eq!(accounts.own(7, process(1), counts(500, 0)), counts(1_500, 0));
        assert_eq!(accounts.credit(7, process(1)), Counts::default());
        assert_eq!(accounts.credit(7, process(2)), counts(10, 0));
        accounts.close();
        for _ in 0..readings_between {
            accounts.begin();
            assert_eq!(accounts.own(7, process(1), counts(500, 0)), Counts::default());
            accounts.close();
        }
        // Another process takes over for 70 bytes, and then the owner takes over again for 30.
        accounts.begin();
        accounts.share(&key(1, 2), counts(500, 0), false);
        accounts.share(&key(2, 2), counts(70, 0), false);
        assert_eq!(accounts.own(7, process(1), counts(30, 0)), counts(30, 0));
        assert_eq!(accounts.credit(7, process(1)), Counts::default());
        assert_eq!(accounts.credit(7, process(2)), counts(70, 0));
        accounts.close();
    }
}

#[test]
fn the_total_of_a_socket_keeps_closed_accounts() {
    let mut accounts = Accounts::default();
    for is_over in [false, true] {
        accounts.begin();
        accounts.share(&key(1, 0), counts(400, 200), is_over);
        accounts.own(7, process(2), counts(100, 0));
        accounts.credit(7, process(1));
        assert_eq!(accounts.total(7, &counts(100, 0)), counts(500, 200));
        accounts.close();
    }
    accounts.begin();
    accounts.own(7, process(2), counts(100, 0));
    assert_eq!(accounts.total(7, &counts(100, 0)), counts(500, 200));
    accounts.close();
    assert!(!accounts.is_shared(7));
    accounts.begin();
    accounts.share(&key(1, 2), counts(300, 0), false);
    accounts.own(7, process(2), counts(100, 0));
    assert_eq!(accounts.total(7, &counts(100, 0)), counts(800, 200));
    // Bytes move from the record to a share that was read before.
    accounts.own(7, process(2), Counts::default());
    assert_eq!(accounts.total(7, &Counts::default()), counts(800, 200));
}

#[test]
fn a_share_is_not_credited_again_after_its_bytes_were() {
    let mut accounts = Accounts::default();
    accounts.begin();
    assert_eq!(accounts.own(7, process(1), counts(100, 0)), counts(100, 0));
    accounts.close();
    for owner in [2, 3, 3] {
        accounts.begin();
        accounts.share(&key(1, 0), counts(60, 0), false);
        if owner == 3 {
            accounts.share(&key(2, 0), counts(40, 0), false);
        }
        let own = if owner == 2 { counts(40, 0) } else { Counts::default() };
        assert_eq!(accounts.own(7, process(owner), own), Counts::default());
        assert_eq!(accounts.credit(7, process(1)), Counts::default());
        assert_eq!(accounts.credit(7, process(2)), Counts::default());
        accounts.close();
    }
}

/// An event at a socket: its next user, the bytes that the previous owner carries until then, the action that
/// follows, and the number of these bytes that belong to the next owner although it has not taken over yet.
type Step = (u32, u64, u8, u64);

/// Simulates the kernel and reads from time to time. Returns the bytes that each process was credited with
/// and those that it carried.
fn play(steps: Vec<Step>) -> ([u64; 4], [u64; 4]) {
    let (mut accounts, mut total, mut in_shares) = (Accounts::default(), 0, 0);
    // The kernel's shares by process and period.
    let mut shares = std::collections::BTreeMap::new();
    let (mut owner, mut period, mut due) = (0, 0u32, Vec::new());
    let (mut credited, mut carried) = ([0; 4], [0; 4]);
    for (user, bytes, what, unclaimed) in steps {
        total += bytes;
        carried[owner as usize] += bytes;
        if user != owner {
            let part = (total - in_shares).saturating_sub(unclaimed);
            *shares.entry((owner, period)).or_insert(0) += part;
            in_shares += part;
            owner = user;
        }
        if what == 0 {
            continue;
        }
        accounts.begin();
        for (&(user, of), &share) in &shares {
            if accounts.share(&key(user, of), counts(share, 0), of < period) {
                due.push(user);
            }
        }
        shares.retain(|&(_, of), _| of == period);
        if what == 1 {
            // An eBPF program was changing the record.
            accounts.changing(7);
            accounts.close();
            continue;
        }
        credited[owner as usize] += accounts.own(7, process(owner), counts(total - in_shares, 0)).sent.bytes;
        for user in due.drain(..) {
            credited[user as usize] += accounts.credit(7, process(user)).sent.bytes;
        }
        accounts.close();
        assert_eq!(credited.iter().sum::<u64>(), total, "all is credited once");
        period += u32::from(what == 3);
    }
    assert_eq!(accounts.refused(), 0);
    (credited, carried)
}

proptest! {
    /// All bytes are credited once, for any sequence of takeovers, readings and periods.
    #[test]
    fn all_is_credited_once(
        steps in prop::collection::vec((0u32..4, 0u64..2_000, 0u8..4, 0u64..3_000), 1..60)
    ) {
        play(steps);
    }

    /// Each process is credited with its own bytes if the owner of each byte is known.
    #[test]
    fn each_is_credited_with_its_own(
        steps in prop::collection::vec((0u32..4, 0u64..2_000, 0u8..4, Just(0)), 1..60)
    ) {
        let last = steps.last().map_or(0, |step| step.0);
        let (credited, carried) = play(steps.into_iter().chain([(last, 0, 2, 0)]).collect());
        prop_assert_eq!(credited, carried);
    }
}
