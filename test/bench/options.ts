import { z } from "zod";
import { allCases, type Case } from "./cases.ts";
import { type ContenderKind, contenderKinds } from "./contenders.ts";
import { type ProbeGroup, probeGroups } from "./probes.ts";
import type { CacheMode } from "./results.ts";

/** What to run. */
export interface Options {
  readonly cases: readonly Case[];
  readonly contenders: readonly ContenderKind[];
  readonly probes: readonly ProbeGroup[];
  readonly modes: readonly CacheMode[];
  readonly rounds: number;
  readonly seconds: number;
  readonly diskBytes: number;
  /** Where images go: a folder on the file system to measure. */
  readonly folder: string;
  /** Where the original tapdisk is installed. */
  readonly blktap: string | undefined;
  /** The name under which several runs add up to one; nothing for a run of its own. */
  readonly sitting: string | undefined;
  /** Whether nothing is left out that runs by default. */
  readonly complete: boolean;
}

const MIB = 1 << 20;
const DEFAULT_ROUNDS = 3;
const DEFAULT_SECONDS = 1;
const DEFAULT_DISK_MIB = 256;

/** The ones that a word means: the one with that name, or those whose name contains it. */
function meant<T extends { readonly name: string }>(all: readonly T[], word: string): T[] {
  if (word === "all") {
    return [...all];
  }
  const exact = all.filter(({ name }) => name === word);
  return exact.length > 0 ? exact : all.filter(({ name }) => name.includes(word));
}

/** Those of `all` that one of the words means, all for `all`, none for `none`; without words `standard`. */
function selection<T extends { readonly name: string }>(all: readonly T[], standard: readonly T[] = all) {
  return z
    .string()
    .default("")
    .transform((text, context) => {
      const words = text.split(/[\s,]+/).filter((word) => word !== "");
      if (words.length === 1 && words[0] === "none") {
        return [];
      }
      const unknown = words.find((word) => meant(all, word).length === 0);
      if (unknown !== undefined) {
        const names = all.map(({ name }) => name).join(", ");
        context.addIssue({ code: "custom", message: `there is no '${unknown}' among ${names}` });
        return z.NEVER;
      }
      return words.length === 0 ? standard : all.filter((one) => words.some((word) => meant(all, word).includes(one)));
    });
}

function number(fallback: number, minimum: number, maximum: number) {
  return z
    .string()
    .optional()
    .transform((text) => (text === undefined || text === "" ? fallback : Number(text)))
    .refine((value) => value >= minimum && value <= maximum, {
      error: `expected a number from ${minimum} to ${maximum}`,
    });
}

const modes: readonly { readonly name: CacheMode }[] = [{ name: "buffered" }, { name: "direct" }];

const coreCases = allCases.filter(({ core }) => core);

const environment = z.object({
  CASES: selection(allCases, coreCases),
  CONTENDERS: selection(contenderKinds),
  PROBES: selection<ProbeGroup>(probeGroups),
  MODES: selection(modes),
  ROUNDS: number(DEFAULT_ROUNDS, 1, 1000).pipe(z.int()),
  SECONDS: number(DEFAULT_SECONDS, 0.1, 3600),
  DISK_MIB: number(DEFAULT_DISK_MIB, 64, 1 << 20).pipe(z.int()),
  SITTING: z.string().default(""),
  BENCH_DIR: z.string().default(""),
  BLKTAP: z.string().default(""),
});

/**
 * Options as environment variables give them, which is how `make` passes them on.
 * @throws an error that names what can't be understood.
 */
export function parseOptions(variables: Readonly<Record<string, string | undefined>>, folder: string): Options {
  const parsed = environment.safeParse(variables);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new Error(`${issue?.path.join(".")}: ${issue?.message}`);
  }
  const given = parsed.data;
  const blktap = given.BLKTAP === "" ? undefined : given.BLKTAP;
  return {
    cases: given.CASES,
    contenders: given.CONTENDERS.filter(({ needsBlktap }) => blktap !== undefined || !needsBlktap),
    probes: given.PROBES,
    modes: given.MODES.map(({ name }) => name),
    rounds: given.ROUNDS,
    seconds: given.SECONDS,
    diskBytes: given.DISK_MIB * MIB,
    folder: given.BENCH_DIR === "" ? folder : given.BENCH_DIR,
    blktap,
    sitting: given.SITTING === "" ? undefined : given.SITTING,
    complete:
      coreCases.every((one) => given.CASES.includes(one)) &&
      given.CONTENDERS.length === contenderKinds.length &&
      given.PROBES.length === probeGroups.length &&
      given.MODES.length === modes.length &&
      given.ROUNDS >= DEFAULT_ROUNDS &&
      given.SECONDS >= DEFAULT_SECONDS &&
      given.DISK_MIB >= DEFAULT_DISK_MIB,
  };
}
