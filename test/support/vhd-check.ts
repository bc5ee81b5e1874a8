/** `vhd-check` as the build left it. */

import { join } from "node:path";
import { expect } from "vitest";
import { outputSchema, type Result } from "../../ts/tools/vhd-check/schema.ts";
import { type Outcome, outcomeOf } from "./run.ts";

/** The program. */
export const vhdCheck: string = join(import.meta.dirname, "../../build/bin/vhd-check");

/** Runs it. */
export function checkWith(...args: string[]): Promise<Outcome> {
  return outcomeOf(vhdCheck, args, { seconds: 60 });
}

/** What it says of images in JSON, and its exit status, which both have. */
export async function checked(...args: string[]): Promise<{ status: number; results: Result[] }> {
  const { status, stdout, stderr } = await checkWith("--json", ...args);
  expect(stderr).toBe("");
  const output = outputSchema.parse(JSON.parse(stdout));
  expect(output.status).toBe(status);
  return { status, results: output.results };
}

/** The codes of what it finds in an image alone or with its parents, each once. */
export async function codesOf(...args: string[]): Promise<{ status: number; codes: string[] }> {
  const { status, results } = await checked(...args);
  const findings = results.flatMap(({ images }) => images).flatMap((image) => image.findings);
  return { status, codes: [...new Set(findings.map(({ code }) => code))].sort() };
}
