//! Bytes that nothing can compress, computed from their position: any range of any file at memory speed, nothing stored.

/// What follows `seed` at `offset` of its stream.
pub(crate) fn fill(seed: u64, offset: u64, into: &mut [u8]) {
    let mut at = 0;
    // A start inside a word.
    let inside = usize::try_from(offset % 8).unwrap_or(0);
    let mut word = offset / 8;
    if inside > 0 {
        let bytes = mix(seed, word).to_le_bytes();
        let take = into.len().min(8 - inside);
        into[..take].copy_from_slice(&bytes[inside..inside + take]);
        at = take;
        word += 1;
    }
    let mut words = into[at..].chunks_exact_mut(8);
    for piece in &mut words {
        piece.copy_from_slice(&mix(seed, word).to_le_bytes());
        word += 1;
    }
    let rest = words.into_remainder();
    let length = rest.len();
    rest.copy_from_slice(&mix(seed, word).to_le_bytes()[..length]);
}

/// SplitMix64 as a function of the position.
fn mix(seed: u64, word: u64) -> u64 {
    let mut value = seed.wrapping_add(word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
