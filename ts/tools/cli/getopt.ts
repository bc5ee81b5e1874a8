/**
 * Command lines as the original's programs take them: single-letter options that may be bundled (`-vsafp`), values behind the
 * letter or in the next argument whatever it begins with, operands anywhere, and `--` before operands that begin with a dash.
 * Long options are additions of ours.
 */

import { UsageError } from "./failure.ts";
import type { ReferenceOption, Value } from "./reference/model.ts";

/** An option that {@link getopt} knows. */
export interface OptionSpec {
  /** One letter, if it has one. */
  readonly short?: string;
  /** Its long form. */
  readonly long?: string;
  readonly description: string;
  /** What it takes; nothing if it is a flag. */
  readonly value?: Value;
}

/** Options by the names that a command's code knows them by. */
export type OptionSpecs = Readonly<Record<string, OptionSpec>>;

/** What was given: the value of the last use of each option, true for flags. */
export type Given<S extends OptionSpecs> = {
  readonly [K in keyof S]?: S[K] extends { readonly value: Value } ? string : true;
};

/** A parsed command line. */
export interface Parsed<S extends OptionSpecs> {
  readonly options: Given<S>;
  readonly operands: readonly string[];
}

/**
 * Parses the arguments of a command.
 * @throws UsageError for an option that isn't known, or one without its value
 */
export function getopt<S extends OptionSpecs>(specs: S, args: readonly string[]): Parsed<S> {
  const given: Record<string, string | true> = {};
  const operands: string[] = [];
  const rest = [...args];
  const named = (flag: string, isIt: (spec: OptionSpec) => boolean): [string, OptionSpec] => {
    const found = Object.entries(specs).find(([, spec]) => isIt(spec));
    if (found === undefined) throw new UsageError(`unknown option ${flag}`);
    return found;
  };
  const next = (flag: string): string => {
    const value = rest.shift();
    if (value === undefined) throw new UsageError(`option ${flag} needs a value`);
    return value;
  };
  for (let arg = rest.shift(); arg !== undefined; arg = rest.shift()) {
    if (arg === "--") {
      operands.push(...rest);
      break;
    }
    if (arg.startsWith("--")) {
      const [flag = "", ...parts] = arg.split("=");
      const [name, spec] = named(flag, ({ long }) => long !== undefined && flag === `--${long}`);
      if (spec.value === undefined && parts.length > 0) throw new UsageError(`option ${flag} takes no value`);
      given[name] = spec.value === undefined ? true : parts.length > 0 ? parts.join("=") : next(flag);
    } else if (arg.startsWith("-") && arg !== "-") {
      for (let at = 1; at < arg.length; at++) {
        const letter = arg.charAt(at);
        const [name, spec] = named(`-${letter}`, ({ short }) => short === letter);
        if (spec.value === undefined) {
          given[name] = true;
        } else {
          given[name] = at + 1 < arg.length ? arg.slice(at + 1) : next(`-${letter}`);
          break;
        }
      }
    } else {
      operands.push(arg);
    }
  }
  return { options: given as Given<S>, operands };
}

/** The options as manual pages and completions have them. */
export function referenceOptions(specs: OptionSpecs): ReferenceOption[] {
  return Object.values(specs).map(({ short, long, description, value }) => {
    const flags = [...(short === undefined ? [] : [`-${short}`]), ...(long === undefined ? [] : [`--${long}`])];
    return value === undefined ? { flags, description } : { flags, description, value };
  });
}

/** C's `strtoull` and `atoi` take what begins with digits; here a number must be one, decimal or with 0x. */
export function parseNumber(text: string, what: string): number {
  const value = /^(0x[0-9a-f]+|\d+)$/i.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value)) throw new UsageError(`${what}: expected a whole number, not '${text}'`);
  return value;
}
