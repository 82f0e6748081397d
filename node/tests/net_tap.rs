//! The tap sees every kind of application data in clear, at both ends, and nothing is missed.

mod net_common;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use allmend_node::net::{Direction, Plane, Tap, TapFrame, connect_client};
use net_common::{Node, Seen, exchange, key, options, until, within};

#[derive(Default)]
struct Recorder(Mutex<BTreeMap<(Plane, Direction, u64), Vec<u8>>>);

impl Tap for Recorder {
    fn frame(&self, frame: TapFrame<'_>) {
        let name = (frame.plane, frame.direction, frame.stream);
        self.0.lock().unwrap().entry(name).or_default().extend_from_slice(frame.bytes);
    }
}

impl Recorder {
    fn saw(&self, plane: Plane, direction: Direction, marker: &[u8]) -> bool {
        self.0.lock().unwrap().iter().any(|((p, d, _), bytes)| {
            *p == plane
                && *d == direction
                && bytes.windows(marker.len()).any(|window| window == marker)
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tap_sees_every_plane_in_both_directions() {
    let (tap_a, tap_b) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    let (mut a, mut b) = (options(1), options(2));
    a.tap = Some(tap_a.clone());
    b.tap = Some(tap_b.clone());
    let mut a = Node::start(a).await;
    let b = Node::start(b).await;
    b.know(&a).await;
    b.meets(&[a.id()]).await;
    a.meets(&[b.id()]).await;
    for tap in [&tap_a, &tap_b] {
        assert!(tap.saw(Plane::Hello, Direction::In, b"member"));
        assert!(tap.saw(Plane::Hello, Direction::Out, b"member"));
    }

    within(b.net.request(a.id(), b"REQUEST-MARKER".to_vec())).await.unwrap();
    assert!(tap_b.saw(Plane::Request, Direction::Out, b"REQUEST-MARKER"));
    assert!(tap_a.saw(Plane::Request, Direction::In, b"REQUEST-MARKER"));
    assert!(tap_a.saw(Plane::Reply, Direction::Out, b"echo:REQUEST-MARKER"));
    assert!(tap_b.saw(Plane::Reply, Direction::In, b"echo:REQUEST-MARKER"));

    let mut round = 0_u32;
    let heard = async {
        let mut beat = tokio::time::interval(std::time::Duration::from_millis(200));
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    round += 1;
                    b.net.publish(format!("good {round}").into_bytes()).await.unwrap();
                }
                _ = a.sees(|seen| matches!(seen, Seen::Gossip(_))) => return,
            }
        }
    };
    within(heard).await;
    assert!(tap_b.saw(Plane::Gossip, Direction::Out, b"good"));
    assert!(tap_a.saw(Plane::Gossip, Direction::In, b"good"));

    let mut stream = b.net.open_bulk(a.id()).await.unwrap();
    stream.write_frame(b"BULK-MARKER", 100).await.unwrap();
    within(stream.read_frame(100)).await.unwrap().unwrap();
    exchange(&mut stream).await;
    for (direction, tap) in [(Direction::Out, &tap_b), (Direction::In, &tap_a)] {
        until("the marker", || async { tap.saw(Plane::Bulk, direction, b"BULK-MARKER") }).await;
    }
    assert!(tap_b.saw(Plane::Bulk, Direction::In, b"echo:BULK-MARKER"));

    let address = a.net.listen_addresses().bulk.unwrap().to_string();
    let client = within(connect_client(&key(40), &address, &a.id())).await.unwrap();
    let mut stream = client.open().await.unwrap();
    stream.write_frame(b"CLIENT-MARKER", 100).await.unwrap();
    within(stream.read_frame(100)).await.unwrap().unwrap();
    assert!(tap_a.saw(Plane::Client, Direction::In, b"CLIENT-MARKER"));
    assert!(tap_a.saw(Plane::Client, Direction::Out, b"echo:CLIENT-MARKER"));
    assert!(!tap_b.saw(Plane::Client, Direction::In, b"CLIENT-MARKER"));
}
