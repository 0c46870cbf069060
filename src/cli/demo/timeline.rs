//! The picture: one line a replica, scaled to the slowest.

use std::fmt::Write;

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

/// Columns of the bars.
const WIDTH: usize = 48;

/// Draws all scenes.
pub(super) fn draw(scenes: &[Scene]) -> String {
    let slowest = scenes
        .iter()
        .flat_map(|scene| &scene.replicas)
        .map(|replica| replica.first_tensor_seconds)
        .fold(f64::EPSILON, f64::max);
    let mut picture = String::new();
    for scene in scenes {
        let _ = writeln!(picture, "\n{}", scene.title);
        for (number, replica) in scene.replicas.iter().enumerate() {
            let columns = ((replica.first_tensor_seconds / slowest * WIDTH as f64).round() as usize).min(WIDTH);
            let bar = if columns == 0 { "▏".to_owned() } else { "█".repeat(columns) };
            let pad = " ".repeat(WIDTH - columns.max(1));
            let seconds = replica.first_tensor_seconds;
            let _ = writeln!(picture, "  replica {}  {bar}{pad} {}", number + 1, shown(seconds));
        }
        let _ = writeln!(
            picture,
            "             origin sent {:.2}× the model · {} line speed · verified: {}",
            scene.origin_ratio,
            if scene.origin_bytes == 0 { "no".to_owned() } else { format!("{:.2}×", scene.times_line_speed) },
            scene.verified
        );
    }
    picture
}

fn shown(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:>5.0} ms", seconds * 1000.0) } else { format!("{seconds:>5.1} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_scale_to_the_slowest() {
        let scene = |name, seconds| Scene {
            name,
            title: name,
            replicas: vec![Replica { weights_seconds: seconds, first_tensor_seconds: seconds }],
            origin_bytes: 1,
            origin_ratio: 1.0,
            times_line_speed: 1.0,
            verified: "blake3",
        };
        let picture = draw(&[scene("slow", 10.0), scene("half", 5.0), scene("warm", 0.004)]);
        let bars: Vec<usize> = picture.lines().map(|line| line.matches('█').count()).filter(|&n| n > 0).collect();
        assert_eq!(bars, [WIDTH, WIDTH / 2]);
        assert!(picture.contains("4 ms"));
    }
}
