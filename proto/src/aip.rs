//! The contract keeps the rules of the AIPs that a descriptor can show (docs/decisions/0017-aips.md).

use std::collections::HashMap;

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

use super::{DESCRIPTOR_SET, reason::Reason};

/// The numbers of fields in the path of a `google.protobuf.SourceCodeInfo.Location`.
const MESSAGE: i32 = 4;
const ENUM: i32 = 5;
const SERVICE: i32 = 6;
const FIELD: i32 = 2;
const ONEOF: i32 = 8;

/// Prepositions (AIP-140; "per" is allowed), units of time (AIP-142), and prefixes that the AIPs leave out.
const REFUSED_WORDS: [&str; 28] = [
    "after",
    "at",
    "before",
    "by",
    "during",
    "for",
    "from",
    "in",
    "into",
    "of",
    "on",
    "over",
    "since",
    "than",
    "to",
    "until",
    "upon",
    "with",
    "without",
    "unix",
    "millis",
    "milliseconds",
    "micros",
    "nanos",
    "seconds",
    "is",
    "num",
    "url",
];
/// Names that Python, Java, Go or Rust reserve.
const RESERVED_NAMES: [&str; 8] = ["pass", "class", "new", "import", "function", "return", "type", "default"];

fn files() -> Vec<FileDescriptorProto> {
    let all = FileDescriptorSet::decode(DESCRIPTOR_SET).unwrap().file;
    let ours: Vec<_> = all.into_iter().filter(|file| file.package() == "pinseal.v1").collect();
    assert!(ours.len() > 3, "the descriptors have no files");
    ours
}

fn messages() -> Vec<DescriptorProto> {
    files().into_iter().flat_map(|file| file.message_type).collect()
}

fn enums() -> Vec<EnumDescriptorProto> {
    files().into_iter().flat_map(|file| file.enum_type).collect()
}

/// Each field, after its name `Message.field`.
fn fields() -> Vec<(String, FieldDescriptorProto)> {
    let of = |message: DescriptorProto| {
        let name = message.name().to_owned();
        message.field.into_iter().map(move |field| (format!("{name}.{}", field.name()), field))
    };
    messages().into_iter().flat_map(of).collect()
}

/// `CardAction` as `card_action`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

fn pascal(name: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('_').map(capital).collect()
}

#[test]
fn an_enum_begins_with_unspecified_and_prefixes_its_values() {
    for described in enums() {
        let prefix = snake(described.name()).to_uppercase() + "_";
        let first = &described.value[0];
        assert_eq!((first.name(), first.number()), (&*format!("{prefix}UNSPECIFIED"), 0));
        for value in &described.value {
            assert!(value.name().starts_with(&prefix), "{}", value.name());
        }
    }
}

#[test]
fn a_field_name_is_nouns_in_snake_case() {
    for (name, field) in fields() {
        for word in field.name().split('_') {
            let mut letters = word.chars();
            assert!(letters.next().is_some_and(|first| first.is_ascii_lowercase()), "{name}");
            assert!(letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit()), "{name}");
            assert!(!REFUSED_WORDS.contains(&word), "{name}: {word}");
        }
        assert!(!RESERVED_NAMES.contains(&field.name()), "{name}");
        assert_ne!(name, format!("{}.{}", pascal(field.name()), field.name()), "a field has the name of its message");
        let is_repeated = field.label() == Label::Repeated;
        assert!(!is_repeated || field.name().ends_with('s'), "{name} is repeated");
    }
}

#[test]
fn times_and_quantities_have_their_types_and_suffixes() {
    for (name, field) in fields() {
        let is_of = |message: &str| field.type_name() == format!(".google.protobuf.{message}");
        assert_eq!(field.name().ends_with("_time"), is_of("Timestamp"), "{name}");
        assert_eq!(field.name().ends_with("_duration"), is_of("Duration"), "{name}");
        let is_number = !matches!(field.r#type(), Type::Message | Type::Enum | Type::String | Type::Bytes | Type::Bool);
        let suffixes = ["_count", "sequence", "sequences", "version", "_number", "_per_second"];
        assert!(!is_number || suffixes.iter().any(|suffix| field.name().ends_with(suffix)), "{name}");
    }
}

#[test]
fn each_method_has_its_own_request_and_response_in_the_order_of_the_methods() {
    for file in files() {
        let mut expected = Vec::new();
        for method in file.service.iter().flat_map(|service| &service.method) {
            let of = |kind: &str| format!("{}{kind}", method.name());
            assert_eq!(method.input_type(), format!(".pinseal.v1.{}", of("Request")));
            assert_eq!(method.output_type(), format!(".pinseal.v1.{}", of("Response")));
            expected.extend([of("Request"), of("Response")]);
        }
        let found = file.message_type.iter().map(DescriptorProto::name).take(expected.len());
        assert_eq!(found.collect::<Vec<_>>(), expected, "{}", file.name());
    }
}

#[test]
fn a_file_has_services_messages_enums_and_the_options_of_java() {
    for file in files() {
        let stem = file.name().rsplit('/').next().unwrap().strip_suffix(".proto").unwrap();
        let options = file.options.as_ref().unwrap();
        assert_eq!(options.java_outer_classname(), pascal(stem) + "Proto");
        assert!(options.java_multiple_files());
        assert!(file.dependency.is_sorted(), "{}", file.name());
        let mut kinds = Vec::new();
        for location in &file.source_code_info.as_ref().unwrap().location {
            if let [kind @ (SERVICE | MESSAGE | ENUM), _] = location.path[..] {
                kinds.push((location.span[0], [SERVICE, MESSAGE, ENUM].iter().position(|one| *one == kind)));
            }
        }
        kinds.sort_unstable();
        assert!(kinds.iter().is_sorted_by_key(|(_, kind)| kind), "{}", file.name());
    }
}

#[test]
fn services_methods_fields_and_values_have_comments() {
    for file in files() {
        let locations = &file.source_code_info.as_ref().unwrap().location;
        let comments: HashMap<&[i32], &str> =
            locations.iter().map(|location| (&location.path[..], location.leading_comments())).collect();
        let mut places = Vec::new();
        let index = |at: usize| i32::try_from(at).unwrap();
        for (at, message) in file.message_type.iter().enumerate() {
            let of_method = message.name().ends_with("Request") || message.name().ends_with("Response");
            if !of_method {
                places.push((vec![MESSAGE, index(at)], message.name().to_owned()));
            }
            for (number, field) in message.field.iter().enumerate() {
                let path = vec![MESSAGE, index(at), FIELD, index(number)];
                places.push((path, format!("{}.{}", message.name(), field.name())));
            }
            for (number, oneof) in message.oneof_decl.iter().enumerate() {
                places.push((vec![MESSAGE, index(at), ONEOF, index(number)], oneof.name().to_owned()));
            }
        }
        for (at, described) in file.enum_type.iter().enumerate() {
            places.push((vec![ENUM, index(at)], described.name().to_owned()));
            for (number, value) in described.value.iter().enumerate() {
                places.push((vec![ENUM, index(at), FIELD, index(number)], value.name().to_owned()));
            }
        }
        for (at, service) in file.service.iter().enumerate() {
            places.push((vec![SERVICE, index(at)], service.name().to_owned()));
            for (number, method) in service.method.iter().enumerate() {
                places.push((vec![SERVICE, index(at), FIELD, index(number)], method.name().to_owned()));
            }
        }
        for (path, name) in places {
            let comment = comments.get(&path[..]).copied().unwrap_or_default();
            assert!(comment.split_whitespace().count() > 2, "{name} has no comment");
        }
    }
}

#[test]
fn a_reason_is_upper_snake_case_of_at_most_63_characters() {
    for reason in Reason::ALL {
        let text = reason.as_str();
        let letters =
            text.chars().all(|letter| letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_');
        assert!(letters && text.len() <= 63 && text.starts_with(|letter: char| letter.is_ascii_uppercase()), "{text}");
    }
}
