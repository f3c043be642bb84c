//! Plots, as SVG that a browser shows by day and by night.

use std::fmt::Write as _;

/// Pixels of the picture.
const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 440.0;
/// Pixels around the plotted area; the legend is on the right.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 235.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 55.0;

/// Of the line that is looked for.
const STRONG: &str = "#d62728";
/// Of all others; when they are used up, dashes begin.
const COLOURS: [&str; 9] = [
    "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f",
    "#bcbd22",
];

/// How values lie along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps.
    Linear,
    /// Equal factors; only values above 0 have a place.
    Log,
    /// Percentiles: equal factors of what is left to 100.
    Percentile,
}

/// One axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    /// How.
    pub scale: Scale,
    /// Places that get a number; empty for what suits the range.
    pub ticks: Vec<f64>,
}

/// A line through points.
#[derive(Clone, Debug)]
pub struct Line {
    /// For the legend.
    pub name: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
    /// Drawn broader than the others.
    pub strong: bool,
}

/// A plot.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// What is shown.
    pub lines: Vec<Line>,
    /// Moments or places with a name: upright dashes.
    pub marks: Vec<(f64, String)>,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.max(f64::MIN_POSITIVE).log10(),
            Self::Percentile => -(100.0 - value).max(1e-6).log10(),
        }
    }

    /// Numbers for an axis from `low` to `high`.
    fn ticks(self, low: f64, high: f64) -> Vec<f64> {
        match self {
            Self::Percentile => vec![1.0, 50.0, 90.0, 99.0, 99.9, 99.99],
            Self::Linear => {
                let rough = (high - low) / 6.0;
                let power = 10_f64.powf(rough.max(1e-9).log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
                let step = step.into_iter().find(|step| *step >= rough);
                let step = step.unwrap_or(10.0 * power);
                let first = (low / step).ceil() as i64;
                let last = (high / step).floor() as i64;
                (first..=last).map(|n| n as f64 * step).collect()
            }
            Self::Log => {
                let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
                // Over many powers of ten the numbers between them would overlap.
                let factors: &[f64] = if powers.clone().count() > 4 {
                    &[1.0]
                } else {
                    &[1.0, 2.0, 5.0]
                };
                powers
                    .flat_map(|power| {
                        factors
                            .iter()
                            .map(move |factor| factor * 10_f64.powi(power))
                    })
                    .collect()
            }
        }
    }
}

/// Where values lie in the picture, along one axis.
struct Span {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Span {
    fn new(axis: &Axis, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let scale = axis.scale;
        let (mut low, mut high) = values
            .filter(|value| value.is_finite() && (scale != Scale::Log || *value > 0.0))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        if !low.is_finite() {
            (low, high) = (1.0, 10.0);
        }
        match scale {
            Scale::Linear => {
                low = low.min(0.0);
                high += (high - low) * 0.05;
            }
            Scale::Log => {
                low /= 1.15;
                high *= 1.15;
            }
            Scale::Percentile => {}
        }
        if scale.place(high) <= scale.place(low) {
            high = low + 1.0;
        }
        Self {
            scale,
            low,
            high,
            from,
            to,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let (low, high) = (self.scale.place(self.low), self.scale.place(self.high));
        let share = (self.scale.place(value) - low) / (high - low);
        self.from + share * (self.to - self.from)
    }

    fn ticks(&self, axis: &Axis) -> Vec<f64> {
        let ticks = if axis.ticks.is_empty() {
            self.scale.ticks(self.low, self.high)
        } else {
            axis.ticks.clone()
        };
        let inside = self.low * 0.999..=self.high * 1.001;
        ticks
            .into_iter()
            .filter(|tick| inside.contains(tick))
            .collect()
    }
}

impl Plot {
    /// The picture.
    pub fn svg(&self) -> String {
        let xs = self
            .lines
            .iter()
            .flat_map(|line| line.points.iter().map(|point| point.0));
        let ys = self
            .lines
            .iter()
            .flat_map(|line| line.points.iter().map(|point| point.1));
        let x = Span::new(&self.x, xs, LEFT, WIDTH - RIGHT);
        let y = Span::new(&self.y, ys, HEIGHT - BOTTOM, TOP);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" role=\"img\" aria-label=\"{}\">\n<style>\n\
             .back {{ fill: #fff; }} text {{ font: 13px sans-serif; fill: #222; }}\n\
             .grid {{ stroke: #8886; stroke-width: 1; }} .line {{ fill: none; stroke-width: 1.5; }}\n\
             .strong {{ stroke-width: 3.2; }} .more {{ stroke-dasharray: 6 3; }} .mark {{ stroke: #888; stroke-dasharray: 5 4; }}\n\
             @media (prefers-color-scheme: dark) {{ .back {{ fill: #16181c; }} text {{ fill: #ddd; }} }}\n\
             </style>\n<rect class=\"back\" width=\"100%\" height=\"100%\"/>\n",
            escaped(&self.title)
        );
        self.draw_axes(&mut text, &x, &y);
        for (place, name) in &self.marks {
            let at = x.at(*place);
            let _ = writeln!(
                text,
                "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                HEIGHT - BOTTOM,
                at + 4.0,
                TOP + 14.0,
                escaped(name)
            );
        }
        for (number, line) in self.lines.iter().enumerate() {
            draw_line(&mut text, number, line, &x, &y);
        }
        text + "</svg>\n"
    }

    fn draw_axes(&self, text: &mut String, x: &Span, y: &Span) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let _ = writeln!(
            text,
            "<text x=\"{LEFT}\" y=\"24\" font-weight=\"bold\">{}</text>",
            escaped(&self.title)
        );
        for tick in x.ticks(&self.x) {
            let at = x.at(tick);
            let _ = writeln!(
                text,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                number(tick)
            );
        }
        for tick in y.ticks(&self.y) {
            let at = y.at(tick);
            let _ = writeln!(
                text,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                number(tick)
            );
        }
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, right),
            HEIGHT - 14.0,
            escaped(&self.x.label)
        );
        let middle = f64::midpoint(TOP, bottom);
        let _ = writeln!(
            text,
            "<text x=\"16\" y=\"{middle:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {middle:.1})\">{}</text>",
            escaped(&self.y.label)
        );
    }
}

fn draw_line(text: &mut String, number: usize, line: &Line, x: &Span, y: &Span) {
    let (colour, strong) = if line.strong {
        (STRONG, " strong")
    } else if number < COLOURS.len() {
        (COLOURS[number], "")
    } else {
        (COLOURS[number % COLOURS.len()], " more")
    };
    let drawn = line
        .points
        .iter()
        .filter(|point| point.1.is_finite() && (y.scale != Scale::Log || point.1 > 0.0));
    let points: Vec<String> = drawn
        .map(|(at, value)| format!("{:.1},{:.1}", x.at(*at), y.at(*value)))
        .collect();
    let _ = writeln!(
        text,
        "<polyline class=\"line{strong}\" stroke=\"{colour}\" points=\"{}\"/>",
        points.join(" ")
    );
    let (left, top) = (WIDTH - RIGHT + 14.0, TOP + 8.0 + 20.0 * number as f64);
    let _ = writeln!(
        text,
        "<line class=\"line{strong}\" stroke=\"{colour}\" x1=\"{left}\" x2=\"{}\" y1=\"{top}\" y2=\"{top}\"/>\
         <text x=\"{}\" y=\"{}\">{}</text>",
        left + 20.0,
        left + 26.0,
        top + 4.0,
        escaped(&line.name)
    );
}

/// `0.5`, `128`, `20k`
fn number(value: f64) -> String {
    if value >= 1e6 {
        format!("{}M", value / 1e6)
    } else if value >= 1e4 {
        format!("{}k", value / 1e3)
    } else {
        let rounded = (value * 1e4).round() / 1e4;
        rounded.to_string()
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(scale: Scale) -> Axis {
        Axis {
            label: "µs".to_owned(),
            scale,
            ticks: Vec::new(),
        }
    }

    #[test]
    fn every_point_lies_within_the_picture() {
        for (x, y) in [
            (Scale::Linear, Scale::Linear),
            (Scale::Log, Scale::Log),
            (Scale::Percentile, Scale::Log),
        ] {
            let plot = Plot {
                title: "a < b".to_owned(),
                x: axis(x),
                y: axis(y),
                lines: vec![Line {
                    name: "one".to_owned(),
                    points: vec![
                        (1.0, 3.0),
                        (50.0, 900.0),
                        (99.0, 20_000.0),
                        (99.9, f64::NAN),
                    ],
                    strong: true,
                }],
                marks: vec![(50.0, "half".to_owned())],
            };
            let svg = plot.svg();
            let points = svg.split("points=\"").nth(1).expect("a line");
            let points = points.split('"').next().expect("its points");
            let points: Vec<(f64, f64)> = points
                .split(' ')
                .map(|point| point.split_once(',').expect("a pair"))
                .map(|(x, y)| (x.parse().expect("x"), y.parse().expect("y")))
                .collect();
            assert_eq!(points.len(), 3, "what is no number has no place");
            for (at, value) in points {
                assert!((LEFT..=WIDTH - RIGHT).contains(&at), "{at}");
                assert!((TOP..=HEIGHT - BOTTOM).contains(&value), "{value}");
            }
            assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"));
        }
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(
            Scale::Linear.ticks(0.0, 10.0),
            [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        );
        assert_eq!(Scale::Log.ticks(1.0, 10.0)[..4], [1.0, 2.0, 5.0, 10.0]);
        assert_eq!([number(0.5), number(20_000.0)], ["0.5", "20k"]);
    }
}
