import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";

let directory = "";
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "sum-results-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

const cargo = (passed: number, failed: number) =>
  `test result: ok. ${passed} passed; ${failed} failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n`;
const vitest = (passed: number, failed: number) =>
  JSON.stringify({ numPassedTests: passed, numFailedTests: failed, numPendingTests: 2, numTodoTests: 0 });

function write(name: string, status: number, kind: string, report: string): void {
  writeFileSync(join(directory, `${name}.status`), `${status}\n`);
  writeFileSync(join(directory, `${name}.${kind}`), report);
}

function run(...names: string[]) {
  const script = join(import.meta.dirname, "sum-results.ts");
  const result = spawnSync(process.execPath, [script, directory, ...names], { encoding: "utf8" });
  return { status: result.status, last: result.stdout.trimEnd().split("\n").at(-1) };
}

test("adds all suites up", () => {
  write("rust", 0, "log", `running\n${cargo(3, 0)}other\n${cargo(4, 0)}`);
  write("unit", 0, "json", vitest(5, 0));
  expect(run("rust", "unit")).toEqual({ status: 0, last: "12 passed, 0 failed" });
});

test("each fuzz target counts", () => {
  write("fuzz", 1, "log", "  fuzzers ... 3 s\nfuzz open ... ok: Done 5 runs\nfuzz chain ... FAILED: see build\n");
  expect(run("fuzz")).toEqual({ status: 1, last: "1 passed, 1 failed" });
});

test("a failed test in any suite fails the whole", () => {
  write("rust", 101, "log", cargo(3, 2));
  write("unit", 0, "json", vitest(5, 0));
  expect(run("rust", "unit")).toEqual({ status: 1, last: "8 passed, 2 failed" });
});

test("a suite that fails without a failed test counts as one failure", () => {
  write("rust", 101, "log", `${cargo(3, 0)}error: could not compile`);
  write("unit", 1, "json", vitest(5, 0));
  expect(run("rust", "unit")).toEqual({ status: 1, last: "8 passed, 2 failed" });
});

test("a suite that reports nothing counts as one failure", () => {
  write("rust", 0, "log", "");
  write("unit", 0, "json", vitest(5, 0));
  expect(run("rust", "unit", "program")).toEqual({ status: 1, last: "5 passed, 2 failed" });
});
