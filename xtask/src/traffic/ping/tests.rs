use super::*;

#[test]
fn a_lost_packet_is_judged_by_the_answered_ones_beside_it() {
    let start = Instant::now();
    let mut packets = Packets::default();
    let mut sent = |number: u32, took: Option<u64>| {
        let sent = start + Duration::from_millis(u64::from(number) * 10);
        let answered = took.map(|took| sent + Duration::from_millis(took));
        packets.seen.insert(number, (sent, answered));
    };
    for (number, took) in [Some(5), None, Some(6), None, None, Some(300), None, Some(7)]
        .into_iter()
        .enumerate()
    {
        sent(number as u32, took);
    }
    let lost: Vec<_> = packets
        .report()
        .unanswered
        .iter()
        .map(|one| (one.number, one.beside.as_millis(), one.queued()))
        .collect();
    let wanted = [
        (1, 6, false),
        (3, 300, true),
        (4, 300, true),
        (6, 300, true),
    ];
    assert_eq!(lost, wanted);
}

#[test]
fn an_answer_belongs_to_the_newest_packet_of_its_sequence_number() {
    let mut packets = Packets::default();
    assert_eq!(packets.newest(0), None);
    for number in [0, 1, 65_535, 65_536, 131_073] {
        packets.seen.insert(number, (Instant::now(), None));
        assert_eq!(packets.newest(number as u16), Some(number));
    }
    assert_eq!(packets.newest(0), Some(131_072));
    assert_eq!(packets.newest(2), Some(65_538));
    let mut few = Packets::default();
    few.seen.insert(3, (Instant::now(), None));
    assert_eq!(few.newest(4), None);
}

#[test]
fn each_straggler_prolongs_the_wait_by_two_seconds_up_to_ten() {
    let end = Instant::now();
    let after = |ms| end + Duration::from_millis(ms);
    let mut none = Stragglers::new(end, 5);
    assert!(!none.are_over(after(1999), 5));
    assert!(none.are_over(after(2000), 5));
    let mut one = Stragglers::new(end, 5);
    assert!(!one.are_over(after(1900), 6));
    assert!(!one.are_over(after(3899), 6));
    assert!(one.are_over(after(3900), 6));
    let mut many = Stragglers::new(end, 5);
    for second in 1..10 {
        assert!(!many.are_over(after(second * 1000), 5 + second as usize));
    }
    assert!(many.are_over(after(10_000), 15));
}
