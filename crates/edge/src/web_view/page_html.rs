//! The document of a page: the template `page.html`, and the texts in the language of the cardholder.

use std::{collections::BTreeMap, fmt::Write, sync::LazyLock};

use axum::http::{HeaderMap, header::ACCEPT_LANGUAGE};

use super::{Page, Placement, WebView};
use domain::control::PageId;

const TEMPLATE: &str = include_str!("page.html");
/// The state of a document after an exchange that the edge or the engine could not serve, and the parameter `state` of its
/// address.
pub(crate) const UNAVAILABLE_STATE: &str = "unavailable";
/// The language of a browser that accepts none of the others.
const DEFAULT_LANGUAGE: &str = "en";

/// A language of the page.
pub(crate) struct Language {
    tag: &'static str,
    direction: &'static str,
    title: String,
    no_script: String,
    /// The language file, for a `script` element.
    texts: String,
}

static LANGUAGES: LazyLock<Vec<Language>> = LazyLock::new(|| {
    vec![
        Language::new("en", "ltr", include_str!("../../../../web/languages/en.json")),
        Language::new("fi", "ltr", include_str!("../../../../web/languages/fi.json")),
        Language::new("sv", "ltr", include_str!("../../../../web/languages/sv.json")),
        Language::new("de", "ltr", include_str!("../../../../web/languages/de.json")),
        Language::new("fr", "ltr", include_str!("../../../../web/languages/fr.json")),
        Language::new("ar", "rtl", include_str!("../../../../web/languages/ar.json")),
    ]
});

/// The state in which a document arrives at the browser.
pub(crate) enum PageState {
    /// A form POST exchanged its control: the page reads the session of this id.
    Opened(PageId),
    /// A frame waits for its control.
    Waiting,
    /// The exchange failed, because the edge or the engine could not serve it: the cardholder starts again in a moment.
    Unavailable {
        /// The seconds of `Retry-After`.
        retry_seconds: u32,
    },
    /// There is no session.
    Expired,
}

impl Language {
    fn new(tag: &'static str, direction: &'static str, file: &str) -> Self {
        let texts: BTreeMap<String, String> = serde_json::from_str(file).unwrap_or_default();
        let text = |key: &str| texts.get(key).cloned().unwrap_or_default();
        // No text can end the script element.
        let json = serde_json::to_string(&texts).unwrap_or_default().replace('<', "\\u003c");
        Self { tag, direction, title: text("title"), no_script: text("no_script"), texts: json }
    }

    /// The language with this tag.
    pub(crate) fn find(tag: &str) -> Option<&'static Self> {
        LANGUAGES.iter().find(|language| language.tag == tag)
    }

    /// The tags of all languages, for people.
    pub(crate) fn tags() -> String {
        LANGUAGES.iter().map(|language| language.tag).collect::<Vec<_>>().join(", ")
    }

    /// The language that a browser prefers (RFC 9110, 12.5.4): the one of the largest weight, the first of equal ones.
    fn preferred(headers: &HeaderMap) -> Option<&'static Self> {
        let values = headers.get_all(ACCEPT_LANGUAGE).iter().filter_map(|value| value.to_str().ok());
        let mut best: Option<(f32, &Self)> = None;
        for range in values.flat_map(|value| value.split(',')) {
            let (tag, parameters) = range.split_once(';').unwrap_or((range, ""));
            let weight = parameters.trim().strip_prefix("q=").map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
            let primary = tag.trim().split('-').next().unwrap_or_default().to_ascii_lowercase();
            let Some(language) = Self::find(&primary) else { continue };
            if weight > best.map_or(0.0, |(weight, _)| weight) {
                best = Some((weight, language));
            }
        }
        best.map(|(_, language)| language)
    }
}

impl WebView {
    /// The document of a page for a browser with these headers.
    pub(crate) fn document(&self, page: &Page, placement: Placement, state: &PageState, headers: &HeaderMap) -> String {
        let base = format!("{}/web/{}", self.path, page.key());
        let language =
            page.language.or_else(|| Language::preferred(headers)).or_else(|| Language::find(DEFAULT_LANGUAGE));
        let (mode, origins) = match placement {
            Placement::Phone => ("phone", String::new()),
            Placement::Frame => ("frame", page.origins()),
        };
        let (name, page_id) = match state {
            PageState::Opened(id) => ("opened", format!(" data-page-id=\"{}\"", id)),
            PageState::Waiting => ("waiting", String::new()),
            PageState::Unavailable { .. } => (UNAVAILABLE_STATE, String::new()),
            PageState::Expired => ("expired", String::new()),
        };
        let logo = page
            .logo
            .as_ref()
            .map_or_else(String::new, |_| format!("<img id=\"logo\" src=\"{base}/logo\" alt=\"\">\n"));
        let of_language = |text: fn(&Language) -> &str| language.map_or("", text).to_owned();
        let values = [
            ("lang", of_language(|language| language.tag)),
            ("dir", of_language(|language| language.direction)),
            ("title", escaped(&of_language(|language| &language.title))),
            ("no_script", escaped(&of_language(|language| &language.no_script))),
            ("texts", of_language(|language| &language.texts)),
            ("mode", mode.to_owned()),
            ("base", base),
            ("path", self.path.clone()),
            ("origins", origins),
            ("view_seconds", self.view_seconds.to_string()),
            ("state", name.to_owned()),
            ("page_id", page_id),
            ("logo", logo),
        ];
        filled(TEMPLATE, &values)
    }
}

/// The template with a value for each `{{name}}`, in one pass: a value with braces is not filled again.
fn filled(template: &str, values: &[(&str, String)]) -> String {
    let mut parts = template.split("{{");
    let mut document = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").unwrap_or(("", part));
        document.extend(values.iter().filter(|(known, _)| *known == name).map(|(_, value)| value.as_str()));
        document.push_str(rest);
    }
    document
}

/// A text for the content of an element.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' | '<' | '>' | '"' | '\'' => {
                let _ = write!(escaped, "&#{};", u32::from(character));
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preferred(value: &str) -> Option<&'static str> {
        let headers = HeaderMap::from_iter([(ACCEPT_LANGUAGE, value.parse().unwrap())]);
        Language::preferred(&headers).map(|language| language.tag)
    }

    #[test]
    fn the_language_of_the_largest_weight_is_chosen() {
        for (value, tag) in [
            ("fi-FI,fi;q=0.9,en;q=0.8", Some("fi")),
            ("nl, sv;q=0.4, AR-eg;q=0.7", Some("ar")),
            ("en;q=0.5, de;q=0.5", Some("en")),
            ("de;q=0, fr;q=0.001", Some("fr")),
            ("nl", None),
            ("*", None),
            ("", None),
            ("fi;q=x", None),
        ] {
            assert_eq!(preferred(value), tag, "{value}");
        }
    }

    #[test]
    fn each_language_has_the_texts_of_the_document() {
        for language in LANGUAGES.iter() {
            assert!(!language.title.is_empty() && !language.no_script.is_empty(), "{}", language.tag);
            assert!(!language.texts.contains('<'), "{}", language.tag);
        }
    }

    #[test]
    fn a_text_or_value_cannot_add_markup() {
        assert_eq!(escaped("<a b=\"c\">&'"), "&#60;a b=&#34;c&#34;&#62;&#38;&#39;");
        let values = [("a", "{{b}}".to_owned()), ("b", "filled".to_owned())];
        assert_eq!(filled("1{{a}}2{{b}}3{{c}}4", &values), "1{{b}}2filled34");
    }

    #[test]
    fn the_template_has_no_unknown_name() {
        let names = ["lang", "dir", "title", "no_script", "texts", "mode", "base", "path", "origins", "view_seconds"];
        let more = ["state", "page_id", "logo"];
        for part in TEMPLATE.split("{{").skip(1) {
            let (name, _) = part.split_once("}}").unwrap();
            assert!(names.contains(&name) || more.contains(&name), "{name}");
        }
    }
}
