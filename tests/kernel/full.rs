//! More sockets than the table of records can hold.

use crate::lab::Host;
use crate::watching::{B, Watch, options, said_until, user, with_lab};
use capture::internals::config::Engine;
use capture::internals::model::Unowned;

/// The capacity of the table.
const CAPACITY: u64 = 262_144;
/// The number of sockets beyond the capacity.
const MORE: u64 = 500;

/// Bytes of sockets without a record are counted under that reason, and not as those of sockets without a
/// holder. Once the table has room again, new sockets get records.
#[test]
fn what_finds_no_room_is_counted_as_that_root() {
    with_lab(|lab| {
        let mut watch = Watch::new(lab, options(Engine::Kernel));
        let _sink = user(lab, Host::B, "drain", &format!("{B}:7500"), &[("drain", 1)]);
        let numbers = [("count", CAPACITY), ("more", MORE)];
        let mut sockets = user(lab, Host::A, "many", &format!("{B}:7500"), &numbers);
        sockets.start();
        said_until(&mut sockets, "full");
        watch.update();
        assert_eq!(watch.stats().flows, CAPACITY, "the table is full");
        let before = [Unowned::QueueFull, Unowned::NoHolder].map(|reason| watch.unowned(reason));
        sockets.start();
        let done = said_until(&mut sockets, "done");
        watch.update();
        let [full, no_holder] = [Unowned::QueueFull, Unowned::NoHolder].map(|reason| watch.unowned(reason));
        // Other sockets of the machine find no room either. If one of them ends, there is room for one of
        // these.
        let sent = done[0].datagrams();
        let found = watch.traffic(done[0].pid).send_bytes;
        let counted = full - before[0] + found;
        assert!((sent..2 * sent).contains(&counted) && found < sent / 10, "{counted} and {found} of {sent}");
        assert!(no_holder - before[1] < sent);
        sockets.start();
        said_until(&mut sockets, "closed");
        watch.until("the records are gone", |watch| watch.stats().flows < CAPACITY / 10);
        sockets.end();
        // There is room again.
        let mut again = user(lab, Host::A, "many", &format!("{B}:7500"), &[("count", 0), ("more", MORE)]);
        again.start();
        said_until(&mut again, "full");
        again.start();
        let done = said_until(&mut again, "done");
        watch.until("all is the process's", |watch| {
            watch.traffic(done[0].pid).send_bytes == done[0].datagrams()
        });
    });
}
