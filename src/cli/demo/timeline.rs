//! The picture: one line a replica, scaled to the slowest.

use super::super::picture::{Bar, Chart, Row, Tone, text};
use super::super::screen::Screen;
use super::super::words;

/// One replica's start.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Replica {
    /// Seconds from the order to start until all weights were usable files.
    pub(super) weights_seconds: f64,
    /// Seconds until the first tensor was read.
    pub(super) first_tensor_seconds: f64,
}

/// One scene of the demonstration.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Scene {
    /// Stable name for scripts.
    pub(super) name: &'static str,
    /// For people.
    pub(super) title: &'static str,
    /// Each replica that started in it.
    pub(super) replicas: Vec<Replica>,
    /// Body bytes that the origin sent.
    pub(super) origin_bytes: u64,
    /// `origin_bytes` over the size of the model.
    pub(super) origin_ratio: f64,
    /// Slowest `weights_seconds` over model bytes ÷ origin bandwidth: 1.0 is the line's own speed.
    pub(super) times_line_speed: f64,
    /// What was verified: `blake3` or `none`.
    pub(super) verified: &'static str,
}

/// Draws all scenes on one axis, which ends with the slowest replica.
pub(super) fn draw(scenes: &[Scene], screen: &Screen) -> String {
    let mut rows = Vec::new();
    for scene in scenes {
        rows.push(Row::Heading(String::new()));
        rows.push(Row::Heading(scene.title.to_owned()));
        for (number, replica) in scene.replicas.iter().enumerate() {
            let end = replica.first_tensor_seconds;
            rows.push(Row::Bars {
                label: format!("  replica {}", number + 1),
                bars: vec![Bar { start: 0.0, end, open: false, tone: Tone::Transfer }],
                note: words::seconds(end),
            });
        }
        let speed = if scene.origin_bytes == 0 { "no".to_owned() } else { format!("{:.2} x", scene.times_line_speed) };
        rows.push(Row::Heading(format!(
            "  origin sent {:.2} x the model, {speed} line speed, verified: {}",
            scene.origin_ratio, scene.verified
        )));
    }
    let replicas = scenes.iter().flat_map(|scene| &scene.replicas);
    let seconds = replicas.map(|replica| replica.first_tensor_seconds).fold(0.0, f64::max);
    text::draw(&Chart { rows, seconds, ..Chart::default() }, screen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_scenes_are_on_one_axis() {
        let scene = |name, seconds, origin_bytes| Scene {
            name,
            title: name,
            replicas: vec![Replica { weights_seconds: seconds, first_tensor_seconds: seconds }],
            origin_bytes,
            origin_ratio: 1.0,
            times_line_speed: 1.0,
            verified: "blake3",
        };
        let scenes = [scene("slow", 10.0, 1), scene("half", 5.0, 1), scene("warm", 0.004, 0)];
        let picture = draw(&scenes, &Screen { columns: 72, unicode: true, colour: false });
        insta::assert_snapshot!(picture, @r"
                    0 s        2 s       4 s        6 s       8 s
                    ┬──────────┬─────────┬──────────┬─────────┬──────────

        slow
          replica 1 █████████████████████████████████████████████████████ 10.0 s
          origin sent 1.00 x the model, 1.00 x line speed, verified: blake3

        half
          replica 1 ███████████████████████████                            5.0 s
          origin sent 1.00 x the model, 1.00 x line speed, verified: blake3

        warm
          replica 1 ▏                                                       4 ms
          origin sent 1.00 x the model, no line speed, verified: blake3
        ");
    }
}
