import { describe, expect, it } from "vitest";
import { UsageError } from "./failure.ts";
import { getopt, parseNumber, referenceOptions } from "./getopt.ts";

const specs = {
  name: { short: "n", long: "name", description: "a name", value: { name: "file", kind: "file" } },
  verbose: { short: "v", description: "more" },
  size: { short: "s", description: "a size", value: { name: "MB", kind: "text" } },
  json: { long: "json", description: "JSON" },
} as const;

describe("getopt", () => {
  it.each([
    [["-v", "-n", "a", "b"], { verbose: true, name: "a" }, ["b"]],
    [["-vn", "a"], { verbose: true, name: "a" }, []],
    [["-vna"], { verbose: true, name: "a" }, []],
    [["-n", "-v"], { name: "-v" }, []],
    [["-n", "a", "-n", "b"], { name: "b" }, []],
    [["b", "-v", "--", "-n"], { verbose: true }, ["b", "-n"]],
    [["-"], {}, ["-"]],
    [["--name", "--json", "--json"], { name: "--json", json: true }, []],
    [["--name=a=b"], { name: "a=b" }, []],
    [["-n", ""], { name: "" }, []],
  ])("takes %j", (args, options, operands) => {
    expect(getopt(specs, args)).toEqual({ options, operands });
  });

  it.each([["-x"], ["-vx"], ["-n"], ["--nam", "a"], ["--json=1"], ["--v"], ["--name"]])("refuses %s %s", (...args) => {
    expect(() => getopt(specs, args)).toThrow(UsageError);
  });

  it("describes its options", () => {
    expect(referenceOptions(specs)[0]).toEqual({
      flags: ["-n", "--name"],
      description: "a name",
      value: { name: "file", kind: "file" },
    });
  });
});

it("numbers are whole", () => {
  expect(parseNumber("0", "x")).toBe(0);
  expect(parseNumber("0x10", "x")).toBe(16);
  for (const text of ["", "-1", "1.5", "1e3", "12a", "99999999999999999999"]) {
    expect(() => parseNumber(text, "x"), text).toThrow(UsageError);
  }
});
