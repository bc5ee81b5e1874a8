/** Options that many commands have. */

import type { OptionSpec } from "../cli/getopt.ts";
import type { Value } from "../cli/reference/model.ts";

/** A flag of one letter. */
export function flag<const L extends string>(short: L, description: string) {
  return { short, description } as const;
}

/** An option with a value. */
export function valued(short: string, valueName: string, description: string, kind: Value["kind"] = "text") {
  return { short, description, value: { name: valueName, kind } } as const;
}

/** The image. */
export const name = {
  short: "n",
  long: "name",
  description: "the image",
  value: { name: "file", kind: "file" },
} as const;

/** The original's way to ask for help. */
export const help = { short: "h", description: "print the options" } as const satisfies OptionSpec;

/** Answers for programs. */
export const json = { long: "json", description: "print the answer as JSON" } as const satisfies OptionSpec;
