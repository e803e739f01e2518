//! The OpenAPI document, generated from the routes. The edge serves the reviewed file `docs/openapi.json`; a test compares
//! both.

use utoipa::{
    OpenApi,
    openapi::{
        Components, ObjectBuilder, RefOr, Required, Schema, SchemaFormat, Server, Type,
        path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
        tag::{Tag, TagBuilder},
    },
};

use super::{api_error::ApiError, operation, route::Operations};
use domain::{caller::AuditUserError, limits::AUDIT_USER_CHARACTERS_MAX};

/// The errors of a request that matches no operation.
const NO_OPERATION: &[ApiError] = &[
    ApiError::ROUTE_UNKNOWN,
    ApiError::METHOD_NOT_ALLOWED,
    ApiError::HTTP_MALFORMED,
    ApiError::HOST_INVALID,
    ApiError::HEADERS_TOO_LARGE,
];

/// The public key of the guide's worked example.
const EXAMPLE_KEY: &str = "\
    MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAorRRoH0KpfluRVZxUTVQUUqKW0YuvvcXCU+h/ugiJOY3+XRtP3yv0xh42AMl\
    tu9aFwD2WQO0aUKeidbqyIRQl7WrOTGJ25JRLtincRoSU/rNIPecFegkfz0+QuRuSMmOJUov6XZTE6A+/48X4aApOXofomqNzib0kO2B\
    KZYV2YFMItphBCjgnH2WWFlCZvXAIdD87KCNlFoSvoLeTR7Oa0wDFFtdNJXU7VQR64eNrwX9evw+Ca2g8RJkIvWQl1oZaYFvSGmLy7ob\
    TZyuedRg2Pn4Xnl1AF2bwixOWsD3waRdElaaYoB9O5oC5aUw53MGb0U9H1tMLpz3ggKD90K51QIDAQAB";
/// The tzpk of the guide's worked example, under [`EXAMPLE_KEY`].
const EXAMPLE_TZPK: &str = "\
    Wsul+pdTosisRd7C81X1kvYg7HZCMA+jPUDZuvtua9Zpf7mTKtrmXg+7i5YyPZnx7+IKmbgfqP7nJrTh9N0rQNWy/3MaIkIH+SX53zEL\
    wPpSbep87Q3vOirwWeeECBvYJHmQc+643a7VFwFiX034SohLRafQnhE5Q1Xp8dMtXhEwBD8mMWJSJ+NEtv0XPRBUOMqNs+uYRiqLbH9n\
    JAGWJy91fOL5FWPhf4sw0WAvBO73orCedRl/zWOWFJEKUgHN/SQG8MxMZSZoz7w4mnYRPSgXJJ72tcjjry0QDKm90okTuAZocJlhMFM9\
    Kn7H0gfZ9qMY4B8T0lgsnk1MEzb9/g==";
/// Example values by schema and member. They fit each other, and a test finds them in the guide.
const EXAMPLES: &[(&str, &str, &str)] = &[
    ("PinControlRequest", "deviceKeySha256", "yWN3irWUYKMuLniu097d2KsjWIEjga1FXGdfkHREptY="),
    ("DeviceKeyRequest", "publicKey", EXAMPLE_KEY),
    ("Tzpk", "tzpk", EXAMPLE_TZPK),
    ("Tzpk", "checkValue", "FB0975"),
    ("SetPinRequest", "pinBlock", "gXOXEFVuFRg="),
    ("ViewedPin", "tzpk", EXAMPLE_TZPK),
    ("ViewedPin", "pinBlock", "gXOXEFVuFRg="),
    ("ViewedPin", "checkValue", "FB0975"),
    ("SetPinByZoneRequest", "zpkIndex", "0"),
    ("SetPinByZoneRequest", "pinBlock", "81739710556E1518"),
    ("ZonePin", "pinBlock", "81739710556E1518"),
];

/// The OpenAPI 3.1 document of the routes, pretty-printed, with a newline at the end. `cargo run --example openapi >
/// docs/openapi.json` updates the reviewed file.
pub fn openapi_json() -> String {
    let mut api = Operations::openapi();
    api.info.title = "Pinseal edge: the Card PIN API".into();
    api.info.version = env!("CARGO_PKG_VERSION").into();
    let mut about = String::from(
        "Set and view a card's PIN from an app. The PIN is encrypted on the cardholder's device, or by a client that shares a \
         zone key with the issuer, and decrypted inside the issuer's key boundary only. Every route is also served at the root, without /pin, and every error has one body. \
         With the strict error profile 429 is 403, any other 4xx but 401 and 403 is 404, 503 is 500, and the errorCode \
         stays.\n\nThe [guide](docs/guide) has the order of calls, a worked example and each errorCode.\n\nA request that matches no \
         operation is answered:\n",
    );
    for error in NO_OPERATION {
        about.push_str(&format!("\n- {} {}", error.status().as_str(), remedy(error)));
    }
    api.info.description = Some(about);
    api.info.contact = None;
    api.servers = Some(vec![Server::new("/")]);
    api.tags = Some(tags());
    let components = api.components.get_or_insert_default();
    list_codes(components);
    add_examples(components);
    let http = |scheme, about| SecurityScheme::Http(HttpBuilder::new().scheme(scheme).description(Some(about)).build());
    components.add_security_scheme(
        "bearer",
        http(HttpAuthScheme::Bearer, "The token of the client; `pinseal demo` prints one."),
    );
    components.add_security_scheme("basic", http(HttpAuthScheme::Basic, "The user and password of the client."));
    let about = Some("The TLS certificate of the client, alone or together with its token or password.".into());
    let certificate = SecurityScheme::MutualTls { description: about, deprecated: None, extensions: None };
    components.add_security_scheme("certificate", certificate);
    api.paths.paths.values_mut().flat_map(operations).for_each(|operation| {
        operation.parameters.get_or_insert_default().push(RefOr::T(audit_user()));
        describe_errors(operation);
    });
    let mut json = api.to_pretty_json().unwrap_or_default();
    json.push('\n');
    json
}

/// The query parameter that every operation requires, by the rule of [`AuditUser`](domain::caller::AuditUser).
fn audit_user() -> Parameter {
    // The description defines the format: no pattern says it in each regular expression that clients use.
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::Custom("audit-user".into())))
        .min_length(Some(1))
        .max_length(Some(AUDIT_USER_CHARACTERS_MAX));
    ParameterBuilder::new()
        .name("auditUser")
        .parameter_in(ParameterIn::Query)
        .required(Required::True)
        .description(Some(format!(
            "The user that the client names; logged, never trusted. {AuditUserError}. It does not begin with web-view, in any case and after any spaces."
        )))
        .schema(Some(schema))
        .example(Some("reader".into()))
        .build()
}

fn operations(path: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut path.get, &mut path.post].into_iter().flatten()
}

/// Lists every errorCode in the schema of the error body.
fn list_codes(components: &mut Components) {
    if let Some(RefOr::T(Schema::Object(body))) = components.schemas.get_mut("ErrorBody")
        && let Some(RefOr::T(Schema::Object(code))) = body.properties.get_mut("errorCode")
    {
        code.enum_values = Some(ApiError::TABLE.iter().map(|error| error.code().into()).collect());
    }
}

fn add_examples(components: &mut Components) {
    for (schema, member, example) in EXAMPLES {
        if let Some(RefOr::T(Schema::Object(body))) = components.schemas.get_mut(*schema)
            && let Some(RefOr::T(Schema::Object(member))) = body.properties.get_mut(*member)
        {
            member.example = Some((*example).into());
        }
    }
}

/// Adds to each error answer of an operation its errorCodes and what to do about each.
fn describe_errors(operation: &mut Operation) {
    let Some(known) = operation.operation_id.as_deref().and_then(operation::Operation::find) else { return };
    for error in known.errors() {
        if let Some(RefOr::T(answer)) = operation.responses.responses.get_mut(error.status().as_str()) {
            let gap = if answer.description.contains("\n- ") { "" } else { "\n" };
            answer.description.push_str(&format!("{gap}\n- {}", remedy(error)));
        }
    }
}

/// An errorCode and what to do about it, in Markdown.
fn remedy(error: &ApiError) -> String {
    format!("`{}`: {}.", error.code(), error.message())
}

/// The tags of the operations, in the order in which a reader needs them.
fn tags() -> Vec<Tag> {
    let about = [
        ("PIN control", "Start here: a control is the right to one operation on one card, for 30 seconds."),
        ("Set PIN", "The device encrypts a new PIN under a tzpk, a temporary zone PIN key."),
        ("View PIN", "The PIN for one device, under a fresh tzpk."),
        ("Pre-shared key", "For a back-end that shares a zone key with the issuer. Off unless the operator grants it."),
    ];
    about.map(|(name, text)| TagBuilder::new().name(name).description(Some(text)).build()).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use domain::limits::{PIN_BLOCK_CHARACTERS, PUBLIC_KEY_CHARACTERS_MAX};

    const REVIEWED: &str = include_str!("../../../docs/openapi.json");

    #[test]
    fn the_reviewed_file_matches_the_routes() {
        assert!(
            openapi_json() == REVIEWED,
            "docs/openapi.json differs from the routes: run `cargo run --example openapi > docs/openapi.json` and \
             review the difference"
        );
    }

    #[test]
    fn the_reviewed_file_states_the_lengths_that_the_edge_checks() {
        let api: Value = serde_json::from_str(REVIEWED).unwrap();
        let member = |schema: &str, member: &str| api["components"]["schemas"][schema]["properties"][member].clone();
        assert_eq!(member("DeviceKeyRequest", "publicKey")["maxLength"], PUBLIC_KEY_CHARACTERS_MAX);
        for bound in ["minLength", "maxLength"] {
            assert_eq!(member("SetPinRequest", "pinBlock")[bound], PIN_BLOCK_CHARACTERS, "{bound}");
        }
        for operation in operations_of(&api) {
            let parameters = operation["parameters"].as_array().unwrap();
            let audit_user = parameters.iter().find(|parameter| parameter["name"] == "auditUser").unwrap();
            assert_eq!(audit_user["schema"]["maxLength"], AUDIT_USER_CHARACTERS_MAX);
        }
    }

    #[test]
    fn the_examples_are_the_values_of_the_guide() {
        let guide = include_str!("../../../docs/guide.md");
        let api: Value = serde_json::from_str(REVIEWED).unwrap();
        for (schema, member, example) in EXAMPLES {
            assert_eq!(
                api["components"]["schemas"][schema]["properties"][member]["example"], *example,
                "{schema}.{member}"
            );
            assert!(guide.contains(example), "the guide does not show {example}");
        }
    }

    fn operations_of(api: &Value) -> impl Iterator<Item = &Value> {
        api["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values())
    }

    /// The errorCodes that a description lists with their messages.
    fn documented_in(description: &Value) -> BTreeSet<&'static str> {
        let text = description.as_str().unwrap();
        let rows = ApiError::TABLE.iter().filter(|row| text.contains(&remedy(row)));
        rows.map(|row| row.code()).collect()
    }

    #[test]
    fn the_reviewed_file_lists_each_error_code_at_its_answers() {
        let api: Value = serde_json::from_str(REVIEWED).unwrap();
        let every: Vec<&str> = ApiError::TABLE.iter().map(|row| row.code()).collect();
        assert_eq!(
            api["components"]["schemas"]["ErrorBody"]["properties"]["errorCode"]["enum"],
            serde_json::json!(every)
        );

        let mut documented = documented_in(&api["info"]["description"]);
        for operation in operations_of(&api) {
            let name = operation["operationId"].as_str().unwrap();
            let rows: Vec<&ApiError> = operation::Operation::find(name).unwrap().errors().collect();
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let of_status =
                    rows.iter().filter(|row| row.status().as_str() == status).map(|row| row.code()).collect();
                let listed = documented_in(&answer["description"]);
                assert_eq!(listed, of_status, "{name} {status}");
                assert!(status.starts_with('2') || !listed.is_empty(), "{name} {status} has no errorCode");
            }
            for row in rows {
                assert!(operation["responses"][row.status().as_str()].is_object(), "{name} has no {}", row.code());
                documented.insert(row.code());
            }
        }
        assert_eq!(documented, every.into_iter().collect(), "an errorCode is not documented");
    }
}
