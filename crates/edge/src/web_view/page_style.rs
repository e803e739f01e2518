//! The style of an operator: colours, corners and font from an allow-list, as CSS custom properties that the page reads.

use std::fmt::Write;

use serde::Deserialize;
use thiserror::Error;

/// The smallest contrast of text (WCAG 2.2, 1.4.3).
const CONTRAST_MIN: f64 = 4.5;
/// The largest radius of a corner, in pixels.
const RADIUS_MAX: u8 = 32;

/// `[web_view.pages.style]` of the configuration file.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StyleFile {
    /// The radius of corners, in pixels: 0 to 32.
    radius: Option<u8>,
    /// The family of the font.
    font: Option<FontFile>,
    /// The colours of a browser in light mode; without them those of the page.
    light: PaletteFile,
    /// The colours of a browser in dark mode; without them those of the page.
    dark: PaletteFile,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FontFile {
    System,
    Serif,
    Rounded,
}

/// Colours as `#rrggbb`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PaletteFile {
    accent: Option<String>,
    accent_text: Option<String>,
    background: Option<String>,
    surface: Option<String>,
    text: Option<String>,
    muted: Option<String>,
    danger: Option<String>,
}

/// The style of a page as CSS.
pub(crate) struct PageStyle {
    /// Custom properties of `:root`, for `style.css` of the page.
    pub(crate) css: Box<str>,
}

/// A style that a page may not have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum StyleError {
    #[error("{0} is not a colour: write it as #rrggbb")]
    Colour(&'static str),
    #[error("{0} needs {1} beside it, because their contrast is checked: set both")]
    Incomplete(&'static str, &'static str),
    #[error(
        "{foreground} on {background} has a contrast of {contrast}, and text needs 4.5 (WCAG 2.2, 1.4.3): choose colours further apart"
    )]
    Contrast { foreground: &'static str, background: &'static str, contrast: String },
    #[error("radius is 0 to {RADIUS_MAX} pixels")]
    Radius,
}

type Colour = [u8; 3];

impl StyleFile {
    /// Checks the style and writes it as CSS.
    ///
    /// # Errors
    /// [`StyleError`]: a colour is malformed, or its contrast is too small or unknown.
    pub(crate) fn check(&self) -> Result<PageStyle, StyleError> {
        if self.radius.is_some_and(|radius| radius > RADIUS_MAX) {
            return Err(StyleError::Radius);
        }
        let mut shape = String::new();
        if let Some(radius) = self.radius {
            let _ = write!(shape, "--ps-radius:{radius}px;");
        }
        if let Some(font) = self.font {
            let _ = write!(shape, "--ps-font:{};", font.families());
        }
        let mut css = if shape.is_empty() { String::new() } else { format!(":root{{{shape}}}\n") };
        for (mode, palette) in [("light", &self.light), ("dark", &self.dark)] {
            let properties = palette.check()?;
            if !properties.is_empty() {
                let _ = writeln!(css, "@media (prefers-color-scheme:{mode}){{:root{{{properties}}}}}");
            }
        }
        Ok(PageStyle { css: css.into() })
    }
}

impl FontFile {
    /// Families that are on the machine: the page loads no font.
    fn families(self) -> &'static str {
        match self {
            Self::System => "system-ui,sans-serif",
            Self::Serif => "ui-serif,Georgia,serif",
            Self::Rounded => "ui-rounded,\"SF Pro Rounded\",\"Nunito\",system-ui,sans-serif",
        }
    }
}

impl PaletteFile {
    fn check(&self) -> Result<String, StyleError> {
        let text = ("text", colour("text", self.text.as_deref())?);
        let background = ("background", colour("background", self.background.as_deref())?);
        let surface = ("surface", colour("surface", self.surface.as_deref())?);
        let accent = ("accent", colour("accent", self.accent.as_deref())?);
        let accent_text = ("accent-text", colour("accent_text", self.accent_text.as_deref())?);
        let muted = ("muted", colour("muted", self.muted.as_deref())?);
        let danger = ("danger", colour("danger", self.danger.as_deref())?);
        check_contrast(text, background)?;
        check_contrast(text, surface)?;
        check_contrast(accent_text, accent)?;
        // The page's own surface has enough contrast with most colours, and the page's own colours with most surfaces.
        for foreground in [muted, danger].into_iter().filter(|(_, colour)| colour.is_some() && surface.1.is_some()) {
            check_contrast(foreground, surface)?;
        }
        let mut properties = String::new();
        for (name, [r, g, b]) in [accent, accent_text, background, surface, text, muted, danger]
            .into_iter()
            .filter_map(|(name, colour)| Some((name, colour?)))
        {
            let _ = write!(properties, "--ps-{name}:#{r:02x}{g:02x}{b:02x};");
        }
        Ok(properties)
    }
}

fn colour(name: &'static str, text: Option<&str>) -> Result<Option<Colour>, StyleError> {
    let Some(text) = text else { return Ok(None) };
    let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6);
    let mut colour = Colour::default();
    let decoded = digits.and_then(|digits| base16ct::mixed::decode(digits, &mut colour).ok().map(|_| ()));
    decoded.map(|()| Some(colour)).ok_or(StyleError::Colour(name))
}

/// Checks two colours that are set together: a page's own colour may have any contrast with an operator's.
fn check_contrast(
    (foreground, front): (&'static str, Option<Colour>),
    (background, back): (&'static str, Option<Colour>),
) -> Result<(), StyleError> {
    match (front, back) {
        (None, None) => Ok(()),
        (Some(_), None) => Err(StyleError::Incomplete(foreground, background)),
        (None, Some(_)) => Err(StyleError::Incomplete(background, foreground)),
        (Some(front), Some(back)) => match contrast(front, back) {
            ratio if ratio >= CONTRAST_MIN => Ok(()),
            ratio => Err(StyleError::Contrast { foreground, background, contrast: format!("{ratio:.2}") }),
        },
    }
}

/// The contrast ratio of two colours (WCAG 2.2): 1 to 21.
fn contrast(one: Colour, other: Colour) -> f64 {
    let (one, other) = (luminance(one), luminance(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

/// The relative luminance of a colour (WCAG 2.2).
fn luminance([red, green, blue]: Colour) -> f64 {
    let linear = |part: u8| {
        let part = f64::from(part) / 255.0;
        if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn css(text: &str) -> Result<String, StyleError> {
        toml::from_str::<StyleFile>(text).unwrap().check().map(|style| style.css.into())
    }

    #[test]
    fn a_style_is_written_as_custom_properties() {
        assert_eq!(css(""), Ok(String::new()));
        let style = "radius = 12\nfont = \"serif\"\n[light]\naccent = \"#0A5AFF\"\naccent_text = \"#ffffff\"\n\
                     [dark]\ntext = \"#eeeeee\"\nbackground = \"#111111\"\nsurface = \"#222222\"\nmuted = \"#aaaaaa\"\n";
        assert_eq!(
            css(style).unwrap(),
            ":root{--ps-radius:12px;--ps-font:ui-serif,Georgia,serif;}\n\
             @media (prefers-color-scheme:light){:root{--ps-accent:#0a5aff;--ps-accent-text:#ffffff;}}\n\
             @media (prefers-color-scheme:dark){:root{--ps-background:#111111;--ps-surface:#222222;--ps-text:#eeeeee;\
             --ps-muted:#aaaaaa;}}\n"
        );
    }

    #[test]
    fn only_colours_of_enough_contrast_are_accepted() {
        assert_eq!(css("radius = 33"), Err(StyleError::Radius));
        for wrong in ["red", "#fff", "#gggggg", "#1234567", "0a5aff", "#fff;}x{", ""] {
            assert_eq!(css(&format!("[dark]\ndanger = {wrong:?}")), Err(StyleError::Colour("danger")), "{wrong}");
        }
        assert_eq!(css("[light]\naccent = \"#0a5aff\""), Err(StyleError::Incomplete("accent", "accent-text")));
        assert_eq!(
            css("[light]\ntext = \"#000000\"\nbackground = \"#ffffff\""),
            Err(StyleError::Incomplete("text", "surface"))
        );
        let palette = "[dark]\ntext = \"#ffffff\"\nbackground = \"#000000\"\nsurface = \"#222222\"\n";
        assert!(css(&format!("{palette}danger = \"#ff8a80\"")).is_ok());
        assert!(matches!(css(&format!("{palette}danger = \"#aa0000\"")), Err(StyleError::Contrast { .. })));
        let pale = css("[light]\naccent = \"#ffffff\"\naccent_text = \"#777777\"").unwrap_err();
        assert!(pale.to_string().contains("accent-text on accent has a contrast of 4.48"), "{pale}");
        assert!(css("[light]\naccent = \"#ffffff\"\naccent_text = \"#767676\"").is_ok());
    }
}
