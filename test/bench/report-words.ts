/** What several parts of the report say in the same way. */

import { allCases, type Case } from "./cases.ts";
import { contenderKinds } from "./contenders.ts";
import { digits } from "./markdown.ts";
import { type CaseResult, measured, rates } from "./results.ts";
import { ratios, type Spread, spread } from "./statistics.ts";

/** Stands where somebody didn't take part. */
export const NONE = "–";
export const FAILED = "failed";

export function present(values: readonly (number | undefined)[]): number[] {
  return values.filter((value) => value !== undefined);
}

/** The median of a figure over the rounds. */
export function median(result: CaseResult, contender: string, figure: Parameters<typeof measured>[2]): string {
  return digits(spread(present(measured(result, contender, figure)))?.median ?? Number.NaN);
}

/** How many times the operations per second of another. */
export function quotient(result: CaseResult, contender: string, than: string): string {
  const ratio = ratios(rates(result, contender), rates(result, than));
  if (ratio !== undefined) {
    return digits(ratio.median);
  }
  const tried = result.outcomes[contender] !== undefined && result.outcomes[than] !== undefined;
  return tried ? FAILED : NONE;
}

export function range(values: Spread | undefined): string | undefined {
  return values && `${digits(values.median)} (${digits(values.minimum)}–${digits(values.maximum)})`;
}

export function titleOf(contender: string): string {
  return contenderKinds.find(({ name }) => name === contender)?.title ?? contender;
}

export function caseTitle(name: string): string {
  return findCase(name)?.title ?? name;
}

export function findCase(name: string): Case | undefined {
  return allCases.find((one) => one.name === name);
}
