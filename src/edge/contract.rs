//! The contract, as the routes have it. What is served is the reviewed file, `docs/openapi.json`.

use utoipa::{
    OpenApi,
    openapi::{
        Server,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use super::route::Operations;

/// The contract as the routes have it, for review: `cargo run --example openapi > docs/openapi.json`.
pub fn openapi_json() -> String {
    let mut api = Operations::openapi();
    api.info.title = "Pinseal edge: the Card PIN API".into();
    api.info.version = env!("CARGO_PKG_VERSION").into();
    api.info.description = Some(
        "Set and view a card's PIN from an app. The PIN is encrypted on the cardholder's device and decrypted inside the \
         issuer's key boundary alone. Every route is also served at the root, without /pin, and every error has one body."
            .into(),
    );
    api.info.contact = None;
    api.servers = Some(vec![Server::new("/")]);
    let components = api.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    components.add_security_scheme("basic", SecurityScheme::Http(Http::new(HttpAuthScheme::Basic)));
    let mut json = api.to_pretty_json().unwrap_or_default();
    json.push('\n');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    const REVIEWED: &str = include_str!("../../docs/openapi.json");

    #[test]
    fn the_reviewed_file_is_what_the_routes_say() {
        assert!(
            openapi_json() == REVIEWED,
            "docs/openapi.json is not what the routes say: run `cargo run --example openapi > docs/openapi.json` and \
             review the difference"
        );
    }
}
