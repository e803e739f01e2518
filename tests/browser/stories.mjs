// What a screen reader gets in each state of states.test.mjs: the accessibility tree, as Playwright writes it.

const tree = (...lines) => ["- main:", ...lines.map((line) => `  - ${line}`)].join("\n");
const quoted = (text) => JSON.stringify(text);
/** A text after a role, quoted as in YAML. */
const value = (text) => (text.includes(": ") ? quoted(text) : text);

/** The trees by state, with these texts of a language. The last seconds of a PIN that is shown are those of English. */
export function storiesOf(words) {
  const text = (key, values = {}) => words[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const title = (key) => `heading ${quoted(text(key))} [level=1]`;
  const paragraph = (key) => `paragraph: ${value(text(key))}`;
  const keys = [..."1234567890", text("delete")].map((key) => `    - button ${quoted(key)}`);
  const length = text("length", { min: 4, max: 12 });
  const two = text("entered", { count: 2 });
  const next = [`${quoted(text("continue"))} [disabled]`];
  const saving = [`${quoted(text("saving"))} [disabled]`];
  const tryNow = `button ${quoted(text("try_now"))}`;

  /** The entry of a PIN. A lost connection takes the place of the alert, and with `isSaving` that of the keys. */
  const entry = ({ step = "choose", alert, lost, isSaving, buttons = next, status }) =>
    tree(
      `timer: ${text("time_left")} 0:00`,
      title(step),
      `paragraph: ${value(length)}`,
      ...(lost ?? [alert ? `alert: ${value(alert)}` : "alert"]),
      `textbox ${quoted(text(step))}`,
      paragraph("headphones"),
      ...(lost && isSaving ? [] : [`group ${quoted(text("keypad"))}:\n${keys.join("\n")}`]),
      ...buttons.map((button) => `button ${button}`),
      `status: ${value(status)}`,
    );
  /** A state without a button. The hint is announced too. */
  const notice = (heading, hint) => tree(title(heading), paragraph(hint), "alert", `status: ${value(text(hint))}`);

  return {
    "01-choose": entry({ status: length }),
    "02-no-paste": entry({ alert: text("no_paste"), status: two }),
    "03-too-short": entry({ alert: text("too_short", { min: 4 }), status: two }),
    "04-repeat": entry({ step: "repeat", buttons: [`${quoted(text("save"))} [disabled]`, quoted(text("another"))], status: two }),
    "05-mismatch": entry({ alert: text("mismatch"), status: length }),
    "06-weak": entry({ alert: text("weak"), status: length }),
    "07-not-confirmed": entry({
      step: "repeat",
      lost: [paragraph("not_confirmed"), tryNow],
      isSaving: true,
      buttons: saving,
      status: text("not_confirmed"),
    }),
    "08-saved": notice("saved", "saved_hint"),
    "09-view": tree(
      `timer: ${text("time_left")} 0:00`,
      title("view"),
      paragraph("view_hint"),
      "alert",
      `button ${quoted(text("show"))}`,
      paragraph("headphones"),
      `status: ${value(text("view_hint"))}`,
    ),
    "10-shown": tree(
      `timer: ${text("hides_in")} 0:00`,
      title("your_pin"),
      paragraph("view_hint"),
      "alert",
      `list ${quoted(text("your_pin"))}:\n${[..."739158264017"].map((digit) => `    - listitem: "${digit}"`).join("\n")}`,
      `button ${quoted(text("hide"))}`,
      `status: ${value(`${text("hides_in")}: 10 seconds`)}`,
    ),
    "11-hidden": notice("hidden", "hidden_hint"),
    "12-expired": notice("expired", "expired_hint"),
    "13-not-set": notice("not_set", "not_set_hint"),
    "14-unconfirmed": notice("unconfirmed", "unconfirmed_hint"),
    "15-failed": notice("failed", "failed_hint"),
    "16-opening": notice("title", "loading"),
    "17-not-shown": notice("not_shown", "not_shown_hint"),
    "18-no-connection": entry({ lost: [paragraph("no_connection")], status: text("no_connection") }),
    "19-saving": entry({ step: "repeat", isSaving: true, buttons: saving, status: text("saving") }),
    "20-unchanged": notice("failed", "unchanged_hint"),
    "21-unavailable": notice("unavailable", "unavailable_hint"),
    "22-unsupported": notice("unsupported", "unsupported_hint"),
    "23-no-script": tree(title("title"), paragraph("no_script")),
  };
}
