import { expect, test } from "vitest";
import { allCases } from "./cases.ts";
import { parseOptions } from "./options.ts";

const names = (all: readonly { readonly name: string }[]) => all.map(({ name }) => name);

test("what bars need runs by default, but the original only where it is installed", () => {
  const options = parseOptions({}, "/tmp");
  expect(options.cases).toEqual(allCases.filter(({ core }) => core));
  expect(names(options.contenders)).not.toContain("blktap");
  expect(options).toMatchObject({
    modes: ["buffered", "direct"],
    rounds: 3,
    seconds: 1,
    folder: "/tmp",
    complete: true,
  });
  expect(names(parseOptions({ BLKTAP: "/opt/blktap" }, "/tmp").contenders)).toContain("blktap");
});

test("cases are chosen by parts of their names", () => {
  const options = parseOptions(
    { CASES: "randread-4k-d1, randread-4k-d32, write-1m", ROUNDS: "5", SECONDS: "0.5" },
    "/tmp",
  );
  expect(names(options.cases)).toEqual(["randread-4k-d1", "randread-4k-d32", "write-1m-d4", "firstwrite-1m-d4"]);
  expect(options).toMatchObject({ rounds: 5, seconds: 0.5, complete: false });
});

test("a whole name means only that one", () => {
  const { contenders, cases } = parseOptions({ CONTENDERS: "raw ours-nbd", CASES: "all" }, "/tmp");
  expect(names(contenders)).toEqual(["raw", "ours-nbd"]);
  expect(cases).toEqual(allCases);
});

test("nothing can be wanted as well", () => {
  const { cases, probes } = parseOptions({ CASES: "none", PROBES: "chain memory" }, "/tmp");
  expect(cases).toEqual([]);
  expect(names(probes)).toEqual(["chain", "memory"]);
});

test("a run that leaves something out is not complete", () => {
  for (const variables of [
    { CASES: "d32" },
    { CONTENDERS: "ours" },
    { MODES: "direct" },
    { ROUNDS: "1" },
    { DISK_MIB: "64" },
    { PROBES: "starting" },
  ]) {
    expect(parseOptions(variables, "/tmp").complete).toBe(false);
  }
  expect(parseOptions({ CASES: "all", MODES: "buffered direct", SECONDS: "4" }, "/tmp").complete).toBe(true);
});

test("what can't be understood is named", () => {
  expect(() => parseOptions({ CASES: "randraed" }, "/tmp")).toThrow(/^CASES: there is no 'randraed' among randread/);
  expect(() => parseOptions({ ROUNDS: "0" }, "/tmp")).toThrow(/^ROUNDS: expected a number from 1/);
  expect(() => parseOptions({ ROUNDS: "1.5" }, "/tmp")).toThrow(/^ROUNDS: /);
  expect(() => parseOptions({ SECONDS: "soon" }, "/tmp")).toThrow(/^SECONDS: /);
});
