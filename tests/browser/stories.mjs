// What a screen reader gets in each state of states.test.mjs, in English: the accessibility tree, as Playwright writes it.

const ADVICE = "A screen reader may speak your digits aloud. Use headphones.";
const KEYS = [..."1234567890", "Delete last digit"].map((key) => `    - button "${key}"`);

/** The entry of a PIN. A lost connection takes the place of the alert, and with `saving` that of the keys. */
function entry({ step = "Choose", alert, lost, saving, buttons = ['"Continue" [disabled]'], status }) {
  return tree(
    "timer: Time left 0:00",
    `heading "${step} your PIN" [level=1]`,
    "paragraph: 4 to 12 digits",
    ...(lost ?? [alert ? `alert: ${alert}` : "alert"]),
    `textbox "${step} your PIN"`,
    `paragraph: ${ADVICE}`,
    ...(lost && saving ? [] : [`group "Keypad":\n${KEYS.join("\n")}`]),
    ...buttons.map((button) => `button ${button}`),
    `status: ${status}`,
  );
}

/** A state without a button. The hint is announced too. */
const notice = (heading, hint) => tree(`heading "${heading}" [level=1]`, `paragraph: ${hint}`, "alert", `status: ${hint}`);

const tree = (...lines) => ["- main:", ...lines.map((line) => `  - ${line}`)].join("\n");

const LENGTH = "4 to 12 digits";
const TWO = '"Digits entered: 2"';
const SAVING = ['"Saving your PIN…" [disabled]'];
const NOBODY = "Make sure that nobody else can see your screen.";
const NOT_CONFIRMED = "No connection, so your PIN is not confirmed yet. We keep trying.";
const LOST = "The connection was lost, so your PIN may or may not have changed. Go back and start again.";

export const STORIES = {
  "01-choose": entry({ status: LENGTH }),
  "02-no-paste": entry({ alert: "Enter your PIN with the keys. It cannot be pasted.", status: TWO }),
  "03-too-short": entry({ alert: "Enter at least 4 digits.", status: TWO }),
  "04-repeat": entry({ step: "Repeat", buttons: ['"Save PIN" [disabled]', '"Choose another PIN"'], status: TWO }),
  "05-mismatch": entry({ alert: "The two PINs are different. Choose your PIN again.", status: LENGTH }),
  "06-weak": entry({ alert: "This PIN is too easy to guess. Choose another one.", status: LENGTH }),
  "07-not-confirmed": entry({
    step: "Repeat",
    lost: [`paragraph: ${NOT_CONFIRMED}`, 'button "Try again now"'],
    saving: true,
    buttons: SAVING,
    status: NOT_CONFIRMED,
  }),
  "08-saved": notice("Your PIN is saved", "You can close this page."),
  "09-view": tree(
    "timer: Time left 0:00",
    'heading "View your PIN" [level=1]',
    `paragraph: ${NOBODY}`,
    "alert",
    'button "Show PIN"',
    `paragraph: ${ADVICE}`,
    `status: ${NOBODY}`,
  ),
  "10-shown": tree(
    "timer: Hides in 0:00",
    'heading "Your PIN" [level=1]',
    `paragraph: ${NOBODY}`,
    "alert",
    `list "Your PIN":\n${[..."739158264017"].map((digit) => `    - listitem: "${digit}"`).join("\n")}`,
    'button "Hide PIN"',
    'status: "Hides in: 10 seconds"',
  ),
  "11-hidden": notice("Your PIN is hidden", "To see it again, go back and start again."),
  "12-expired": notice("The time is up", "For your safety this page works for a short time only. Go back and start again."),
  "13-not-set": notice("This card has no PIN yet", "Go back and choose a PIN first."),
  "14-unconfirmed": notice("We could not confirm your PIN", LOST),
  "15-failed": notice("Something went wrong", "Go back and start again."),
  "16-opening": notice("Your PIN", "Getting ready…"),
  "17-not-shown": notice("This PIN cannot be shown", "Go back and choose a new PIN."),
  "18-no-connection": entry({ lost: ["paragraph: No connection. We keep trying."], status: "No connection. We keep trying." }),
  "19-saving": entry({ step: "Repeat", saving: true, buttons: SAVING, status: "Saving your PIN…" }),
  "20-unchanged": notice("Something went wrong", "Your PIN was not changed. Go back and start again."),
  "21-unavailable": notice("The service cannot be reached", "Wait a moment, then go back and start again."),
  "22-unsupported": notice("This browser is too old", "Update the app or the browser, then start again."),
  "23-no-script": tree(
    'heading "Your PIN" [level=1]',
    "paragraph: This page needs JavaScript. Turn it on and open the page again.",
  ),
};
