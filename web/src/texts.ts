import type english from "../languages/en.json";

/** The name of a text: every language file has the same ones. */
export type TextKey = keyof typeof english;

const texts = JSON.parse(document.getElementById("texts")?.textContent ?? "{}") as Partial<Record<TextKey, string>>;

/** The text in the language of the page, with `{name}` replaced by the value of that name. */
export function text(key: TextKey, values: Record<string, number> = {}): string {
  return (texts[key] ?? key).replace(/\{(\w+)\}/g, (_, name: string) => String(values[name] ?? ""));
}

/** Seconds in words, for screen readers: "10 seconds". Western digits, like the keys. */
export function secondsInWords(seconds: number): string {
  const locale = new Intl.Locale(document.documentElement.lang || "en", { numberingSystem: "latn" });
  return new Intl.NumberFormat(locale, { style: "unit", unit: "second", unitDisplay: "long" }).format(seconds);
}
