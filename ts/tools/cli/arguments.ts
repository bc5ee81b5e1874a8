/** Schemas for what is typed on a command line. */

import { isUtf8 } from "node:buffer";
import { readFileSync } from "node:fs";
import * as z from "zod";
import { messageOf } from "../../tapdisk/errors.ts";
import { UsageError } from "./failure.ts";

/**
 * Refuses arguments of this program that are not UTF-8: Node puts another character in the place of such bytes, so that it
 * would be another file's name.
 * @throws UsageError
 */
export function refuseForeignBytes(): void {
  const [changed] = process.argv.filter((argument) => argument.includes("\ufffd"));
  if (changed !== undefined && !isUtf8(readFileSync("/proc/self/cmdline"))) {
    throw new UsageError(`'${changed}' is not UTF-8, as names of files have to be here`);
  }
}

/** Text that a function understands; the message of what it throws is the issue. */
export function text<T>(parse: (text: string) => T) {
  return z.string().transform((value, context) => {
    try {
      return parse(value);
    } catch (error) {
      context.addIssue(messageOf(error));
      return z.NEVER;
    }
  });
}

/** A whole number in decimal digits. */
export function integer(minimum: number, maximum: number) {
  const error = `expected a whole number from ${minimum} to ${maximum}`;
  return z
    .string()
    .regex(/^\d+$/, { error, abort: true })
    .transform(Number)
    .refine((value) => value >= minimum && value <= maximum, { error });
}

const UNITS = { "": 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 } as const;

/** Bytes: a number, with or without a unit of K, M, G or T (powers of 1024), such as `20G`, `1.5T` or `512MiB`. */
export function size(minimum: number, maximum: number) {
  return z.string().transform((value, context) => {
    const [, number, unit] = /^(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?$/i.exec(value) ?? [];
    const factor = UNITS[(unit ?? "").toUpperCase() as keyof typeof UNITS];
    const bytes = Number(number) * factor;
    if (number === undefined || !Number.isSafeInteger(bytes) || bytes < minimum || bytes > maximum) {
      context.addIssue(`expected a size from ${minimum} to ${maximum} bytes, such as 20G`);
      return z.NEVER;
    }
    return bytes;
  });
}

/**
 * The first thing that is wrong with the arguments of a command, after the name as the user typed it. `positional` has the
 * keys of those that are no options.
 */
export function describeIssue({ issues: [issue] }: z.ZodError, positional: readonly string[] = []): string {
  const name = String(issue?.path[0]);
  const option = name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  return `${positional.includes(name) ? name : `--${option}`}: ${issue?.message}`;
}
