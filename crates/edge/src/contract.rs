//! The contract, as the routes have it. What is served is the reviewed file, `docs/openapi.json`.

use utoipa::{
    OpenApi,
    openapi::{
        Components, RefOr, Schema, Server,
        path::{Operation, PathItem},
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use super::{fault::Fault, route::Operations};

/// What every operation may answer.
const OF_EACH: &[Fault] = &[
    Fault::BODY_MALFORMED,
    Fault::AUDIT_USER_INVALID,
    Fault::REQUEST_INVALID,
    Fault::UNAUTHENTICATED,
    Fault::CALLER_FORBIDDEN,
    Fault::NOT_FOUND,
    Fault::BODY_TIMEOUT,
    Fault::BODY_TOO_LARGE,
    Fault::STATE_CONFLICT,
    Fault::UNEXPECTED,
    Fault::BUSY,
    Fault::STORE_UNAVAILABLE,
    Fault::TOKEN_UNAVAILABLE,
    Fault::ENGINE_UNAVAILABLE,
];
/// What is answered where there is no operation.
const OF_NONE: &[Fault] = &[Fault::ROUTE_UNKNOWN, Fault::METHOD_NOT_ALLOWED];

/// What an operation under a control may answer.
const OF_CONTROL: &[Fault] =
    &[Fault::CONTROL_ID_INVALID, Fault::TENANT_MISMATCH, Fault::SCOPE_MISMATCH, Fault::CONTROL_NOT_USABLE];
/// And one for a device key.
const OF_DEVICE_KEY: &[Fault] = &[Fault::DEVICE_KEY_INVALID, Fault::DEVICE_KEY_MISMATCH];

/// What an operation may answer, by its name.
fn of_one(operation: &str) -> impl Iterator<Item = &'static Fault> {
    let groups: &[&[Fault]] = match operation {
        "openControl" => {
            &[&[Fault::PLASTIC_ID_INVALID, Fault::SCOPE_INVALID, Fault::CARD_UNKNOWN, Fault::CONTROL_CAP], OF_EACH]
        }
        "issueTzpk" => &[OF_CONTROL, OF_DEVICE_KEY, OF_EACH],
        "setPin" => {
            const OF_BLOCK: &[Fault] =
                &[Fault::PIN_BLOCK_LENGTH, Fault::TZPK_MISSING, Fault::PIN_BLOCK_MALFORMED, Fault::PIN_REFUSED];
            &[OF_CONTROL, OF_BLOCK, OF_EACH]
        }
        "viewPin" => &[OF_CONTROL, OF_DEVICE_KEY, &[Fault::PIN_NOT_SET, Fault::PIN_NOT_SHOWN], OF_EACH],
        _ => &[OF_EACH],
    };
    groups.iter().copied().flatten()
}

/// The contract as the routes have it, for review: `cargo run --example openapi > docs/openapi.json`.
pub fn openapi_json() -> String {
    let mut api = Operations::openapi();
    api.info.title = "Pinseal edge: the Card PIN API".into();
    api.info.version = env!("CARGO_PKG_VERSION").into();
    let mut about = String::from(
        "Set and view a card's PIN from an app. The PIN is encrypted on the cardholder's device and decrypted inside the \
         issuer's key boundary alone. Every route is also served at the root, without /pin, and every error has one body. \
         With the strict error profile 429 is 403, any other 4xx but 401 and 403 is 404, 503 is 500, and the errorCode \
         stays.",
    );
    for fault in OF_NONE {
        about.push_str(&format!(" {}, {}: {}.", fault.status().as_str(), fault.code(), fault.message()));
    }
    api.info.description = Some(about);
    api.info.contact = None;
    api.servers = Some(vec![Server::new("/")]);
    let components = api.components.get_or_insert_default();
    name_codes(components);
    components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    components.add_security_scheme("basic", SecurityScheme::Http(Http::new(HttpAuthScheme::Basic)));
    api.paths.paths.values_mut().flat_map(operations).for_each(tell_faults);
    let mut json = api.to_pretty_json().unwrap_or_default();
    json.push('\n');
    json
}

fn operations(path: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut path.get, &mut path.post].into_iter().flatten()
}

/// Names every errorCode in the body of an error.
fn name_codes(components: &mut Components) {
    if let Some(RefOr::T(Schema::Object(body))) = components.schemas.get_mut("FaultBody")
        && let Some(RefOr::T(Schema::Object(code))) = body.properties.get_mut("errorCode")
    {
        code.enum_values = Some(Fault::TABLE.iter().map(|fault| fault.code().into()).collect());
    }
}

/// Tells at each error answer of an operation which errorCodes it has, and what to do about each.
fn tell_faults(operation: &mut Operation) {
    let name = operation.operation_id.as_deref().unwrap_or_default();
    for fault in of_one(name) {
        if let Some(RefOr::T(answer)) = operation.responses.responses.get_mut(fault.status().as_str()) {
            answer.description.push_str(&format!(" {}: {}.", fault.code(), fault.message()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use domain::limits::{AUDIT_USER_CHARACTERS_MAX, PIN_BLOCK_CHARACTERS, PUBLIC_KEY_CHARACTERS_MAX};

    const REVIEWED: &str = include_str!("../../../docs/openapi.json");

    #[test]
    fn the_reviewed_file_is_what_the_routes_say() {
        assert!(
            openapi_json() == REVIEWED,
            "docs/openapi.json is not what the routes say: run `cargo run --example openapi > docs/openapi.json` and \
             review the difference"
        );
    }

    #[test]
    fn the_reviewed_file_has_the_lengths_that_the_edge_checks() {
        let api: Value = serde_json::from_str(REVIEWED).unwrap();
        let member = |schema: &str, member: &str| api["components"]["schemas"][schema]["properties"][member].clone();
        assert_eq!(member("DeviceKeyRequest", "publicKey")["maxLength"], PUBLIC_KEY_CHARACTERS_MAX);
        for bound in ["minLength", "maxLength"] {
            assert_eq!(member("SetPinRequest", "pinBlock")[bound], PIN_BLOCK_CHARACTERS, "{bound}");
        }
        for operation in api["paths"].as_object().unwrap().values().map(|path| &path["post"]) {
            let parameters = operation["parameters"].as_array().unwrap();
            let audit_user = parameters.iter().find(|parameter| parameter["name"] == "auditUser").unwrap();
            assert_eq!(audit_user["schema"]["maxLength"], AUDIT_USER_CHARACTERS_MAX);
        }
    }

    /// The errorCodes a description tells of, each with the row's own words.
    fn told(description: &Value) -> BTreeSet<&'static str> {
        let text = description.as_str().unwrap();
        let rows = Fault::TABLE.iter().filter(|row| text.contains(&format!(" {}: {}.", row.code(), row.message())));
        rows.map(|row| row.code()).collect()
    }

    #[test]
    fn the_reviewed_file_names_each_error_code_at_the_answers_that_have_it() {
        let api: Value = serde_json::from_str(REVIEWED).unwrap();
        let every: Vec<&str> = Fault::TABLE.iter().map(|row| row.code()).collect();
        assert_eq!(
            api["components"]["schemas"]["FaultBody"]["properties"]["errorCode"]["enum"],
            serde_json::json!(every)
        );

        let mut documented = told(&api["info"]["description"]);
        for operation in api["paths"].as_object().unwrap().values().map(|path| &path["post"]) {
            let name = operation["operationId"].as_str().unwrap();
            let rows: Vec<&Fault> = of_one(name).collect();
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let of_status =
                    rows.iter().filter(|row| row.status().as_str() == status).map(|row| row.code()).collect();
                let told = told(&answer["description"]);
                assert_eq!(told, of_status, "{name} {status}");
                assert!(status.starts_with('2') || !told.is_empty(), "{name} {status} has no errorCode");
            }
            for row in rows {
                assert!(operation["responses"][row.status().as_str()].is_object(), "{name} has no {}", row.code());
                documented.insert(row.code());
            }
        }
        assert_eq!(documented, every.into_iter().collect(), "an errorCode is told of nowhere");
    }
}
