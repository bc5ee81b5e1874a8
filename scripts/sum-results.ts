// Adds up what the test suites reported, for the closing line of `make test`.
//
//   node scripts/sum-results.ts DIRECTORY SUITE...
//
// For each suite the directory holds `SUITE.status` (the exit status of its command) and its report: `SUITE.json` as
// vitest writes it, or `SUITE.log` with the `test result:` lines of `cargo test`, or those of `scripts/fuzz`.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";

export type Sum = { passed: number; failed: number; skipped: number };

const vitestReport = z.object({
  numPassedTests: z.number(),
  numFailedTests: z.number(),
  numPendingTests: z.number(),
  numTodoTests: z.number(),
});

export function sumCargo(log: string): Sum {
  const sum: Sum = { passed: 0, failed: 0, skipped: 0 };
  for (const found of log.matchAll(/^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;/gm)) {
    sum.passed += Number(found[1]);
    sum.failed += Number(found[2]);
    sum.skipped += Number(found[3]);
  }
  return sum;
}

/** Each fuzz target is one test. */
export function sumFuzz(log: string): Sum {
  const outcomes = [...log.matchAll(/^fuzz \w+ \.\.\. (ok|FAILED)/gm)].map((found) => found[1]);
  const passed = outcomes.filter((outcome) => outcome === "ok").length;
  return { passed, failed: outcomes.length - passed, skipped: 0 };
}

function add(...sums: Sum[]): Sum {
  const total: Sum = { passed: 0, failed: 0, skipped: 0 };
  for (const { passed, failed, skipped } of sums) {
    total.passed += passed;
    total.failed += failed;
    total.skipped += skipped;
  }
  return total;
}

export function sumVitest(json: string): Sum {
  const report = vitestReport.parse(JSON.parse(json));
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests,
    skipped: report.numPendingTests + report.numTodoTests,
  };
}

/** A suite that ran no test, or that went wrong without naming a failed test, counts as one failure. */
export function suite(directory: string, name: string): Sum {
  const read = (kind: string) => {
    const path = join(directory, `${name}.${kind}`);
    return existsSync(path) ? readFileSync(path, "utf8") : undefined;
  };
  const json = read("json");
  const log = read("log") ?? "";
  const sum = json === undefined ? add(sumCargo(log), sumFuzz(log)) : sumVitest(json);
  const wentWrong = read("status")?.trim() !== "0" || sum.passed + sum.failed === 0;
  return wentWrong && sum.failed === 0 ? { ...sum, failed: 1 } : sum;
}

if (import.meta.main) {
  const [directory, ...names] = process.argv.slice(2);
  if (directory === undefined || names.length === 0) throw new Error("usage: sum-results.ts DIRECTORY SUITE...");
  const sums = names.map((name) => suite(directory, name));
  for (const [index, { passed, failed, skipped }] of sums.entries()) {
    console.log(`${names[index]}: ${passed} passed, ${failed} failed, ${skipped} skipped`);
  }
  const total = add(...sums);
  console.log(`${total.passed} passed, ${total.failed} failed`);
  process.exitCode = total.failed === 0 ? 0 : 1;
}
