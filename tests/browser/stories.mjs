// What a screen reader gets in each state of states.test.mjs, in English: the accessibility tree, as Playwright writes it.
const KEYPAD = `- group "Keypad":
    - button "1"
    - button "2"
    - button "3"
    - button "4"
    - button "5"
    - button "6"
    - button "7"
    - button "8"
    - button "9"
    - button "0"
    - button "Delete last digit"
`;

export const STORIES = {
  "01-choose": `- main:
  - timer: Time left 0:00
  - heading "Choose your PIN" [level=1]
  - paragraph: 4 to 12 digits
  - alert
  - textbox "Choose your PIN"
  - paragraph: A screen reader may speak your digits aloud. Use headphones.
  ${KEYPAD}  - button "Continue" [disabled]
  - status: 4 to 12 digits`,
  "02-no-paste": `- main:
  - timer: Time left 0:00
  - heading "Choose your PIN" [level=1]
  - paragraph: 4 to 12 digits
  - alert: Enter your PIN with the keys. It cannot be pasted.
  - textbox "Choose your PIN"
  - paragraph: A screen reader may speak your digits aloud. Use headphones.
  ${KEYPAD}  - button "Continue" [disabled]
  - status: "Digits entered: 2"`,
  "03-too-short": `- main:
  - timer: Time left 0:00
  - heading "Choose your PIN" [level=1]
  - paragraph: 4 to 12 digits
  - alert: Enter at least 4 digits.
  - textbox "Choose your PIN"
  - paragraph: A screen reader may speak your digits aloud. Use headphones.
  ${KEYPAD}  - button "Continue" [disabled]
  - status: "Digits entered: 2"`,
  "04-repeat": `- main:
  - timer: Time left 0:00
  - heading "Repeat your PIN" [level=1]
  - paragraph: 4 to 12 digits
  - alert
  - textbox "Repeat your PIN"
  - paragraph: A screen reader may speak your digits aloud. Use headphones.
  ${KEYPAD}  - button "Save PIN" [disabled]
  - button "Choose another PIN"
  - status: "Digits entered: 2"`,
  "05-mismatch": `- main:
  - timer: Time left 0:00
  - heading "Choose your PIN" [level=1]
  - paragraph: 4 to 12 digits
  - alert: The two PINs are different. Choose your PIN again.
  - textbox "Choose your PIN"
  - paragraph: A screen reader may speak your digits aloud. Use headphones.
  ${KEYPAD}  - button "Continue" [disabled]
  - status: 4 to 12 digits`,
  "06-weak": `- main:
  - timer: Time left 0:00
  - heading "Choose your PIN" [level=1]
  - paragraph: 4 to 12 digits
  - alert: This PIN is too easy to guess. Choose another one.
  - textbox "Choose your PIN"
  - paragraph: A screen reader may speak your digits aloud. Use headphones.
  ${KEYPAD}  - button "Continue" [disabled]
  - status: 4 to 12 digits`,
  "07-not-confirmed": `- main:
  - timer: Time left 0:00
  - heading "Repeat your PIN" [level=1]
  - paragraph: 4 to 12 digits
  - paragraph: No connection, so your PIN is not confirmed yet. We keep trying.
  - button "Try again now"
  - textbox "Repeat your PIN"
  - paragraph: A screen reader may speak your digits aloud. Use headphones.
  - button "Saving your PIN…" [disabled]
  - status: No connection, so your PIN is not confirmed yet. We keep trying.`,
  "08-saved": `- main:
  - heading "Your PIN is saved" [level=1]
  - paragraph: You can close this page.
  - alert
  - status: You can close this page.`,
  "09-view": `- main:
  - timer: Time left 0:00
  - heading "View your PIN" [level=1]
  - paragraph: Make sure that nobody else can see your screen.
  - alert
  - button "Show PIN"
  - paragraph: A screen reader may speak your digits aloud. Use headphones.
  - status: Make sure that nobody else can see your screen.`,
  "10-shown": `- main:
  - timer: Hides in 0:00
  - heading "Your PIN" [level=1]
  - paragraph: Make sure that nobody else can see your screen.
  - alert
  - list "Your PIN":
    - listitem: "7"
    - listitem: "3"
    - listitem: "9"
    - listitem: "1"
    - listitem: "5"
    - listitem: "8"
    - listitem: "2"
    - listitem: "6"
    - listitem: "4"
    - listitem: "0"
    - listitem: "1"
    - listitem: "7"
  - button "Hide PIN"
  - status: "Hides in: 10 seconds"`,
  "11-hidden": `- main:
  - heading "Your PIN is hidden" [level=1]
  - paragraph: To see it again, go back and start again.
  - alert
  - status: To see it again, go back and start again.`,
  "12-expired": `- main:
  - heading "The time is up" [level=1]
  - paragraph: For your safety this page works for a short time only. Go back and start again.
  - alert
  - status: For your safety this page works for a short time only. Go back and start again.`,
  "13-not-set": `- main:
  - heading "This card has no PIN yet" [level=1]
  - paragraph: Go back and choose a PIN first.
  - alert
  - status: Go back and choose a PIN first.`,
  "14-unconfirmed": `- main:
  - heading "We could not confirm your PIN" [level=1]
  - paragraph: The connection was lost, so your PIN may or may not have changed. Go back and start again.
  - alert
  - status: The connection was lost, so your PIN may or may not have changed. Go back and start again.`,
  "15-failed": `- main:
  - heading "Something went wrong" [level=1]
  - paragraph: Go back and start again.
  - alert
  - status: Go back and start again.`,
  "16-opening": `- main:
  - heading "Your PIN" [level=1]
  - paragraph: Getting ready…
  - alert
  - status: Getting ready…`,
  "17-not-shown": `- main:
  - heading "This PIN cannot be shown" [level=1]
  - paragraph: Go back and choose a new PIN.
  - alert
  - status: Go back and choose a new PIN.`,
  "18-no-connection": `- main:
  - timer: Time left 0:00
  - heading "Choose your PIN" [level=1]
  - paragraph: 4 to 12 digits
  - paragraph: No connection. We keep trying.
  - textbox "Choose your PIN"
  - paragraph: A screen reader may speak your digits aloud. Use headphones.
  ${KEYPAD}  - button "Continue" [disabled]
  - status: No connection. We keep trying.`,
  "19-saving": `- main:
  - timer: Time left 0:00
  - heading "Repeat your PIN" [level=1]
  - paragraph: 4 to 12 digits
  - alert
  - textbox "Repeat your PIN"
  - paragraph: A screen reader may speak your digits aloud. Use headphones.
  ${KEYPAD}  - button "Saving your PIN…" [disabled]
  - status: Saving your PIN…`,
  "20-unchanged": `- main:
  - heading "Something went wrong" [level=1]
  - paragraph: Your PIN was not changed. Go back and start again.
  - alert
  - status: Your PIN was not changed. Go back and start again.`,
};
