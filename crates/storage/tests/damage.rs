//! Bits turn, pages go blank, files are cut: never a panic, never a wrong byte, never silence.

mod simulated;

use simulated::begin;

#[test]
fn damage_anywhere_is_survived_and_reported() {
    let ci = std::env::var("BRAID_TIER").is_ok_and(|tier| tier != "quick");
    let (images, each) = if ci { (100, 100) } else { (25, 40) };
    let mut tally = (0, 0);
    for image in 1..=images {
        let (mut life, settings) = begin(image).expect("an empty disk opens");
        for _ in 0..60 + image * 3 {
            life.step().expect("nothing fails");
        }
        life.write_group().expect("nothing fails");
        let before = life.tally;
        for seed in 0..each {
            if let Err(error) = life.open_damaged(&settings, image * 1_000_003 + seed) {
                panic!("image {image}, damage {seed}: {error}");
            }
        }
        tally.0 += each;
        tally.1 += life.tally.damage_reported - before.damage_reported;
    }
    println!("{} damaged images, {} of them report it; in the others nothing that counts was hit", tally.0, tally.1);
}
