import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { glob, matches } from "./glob.ts";

describe("a pattern", () => {
  it.each([
    ["VHD-*", "VHD-1", true],
    ["VHD-*", "MGT", false],
    ["*.vhd", ".hidden.vhd", false],
    [".*.vhd", ".hidden.vhd", true],
    ["a?c", "abc", true],
    ["a[!b]c", "abc", false],
    ["a[a-c]c", "abc", true],
    ["{a,b{1,2}}", "b2", true],
    ["{a}", "{a}", true],
    ["a\\*", "a*", true],
    ["a\\*", "ab", false],
    ["a.c", "abc", false],
    ["[", "[", true],
  ])("%s fits %s: %s", (pattern, name, fits) => {
    expect(matches(pattern, name)).toBe(fits);
  });
});

describe("glob", () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "glob-"));
    mkdirSync(join(folder, "sub [1]"));
    for (const name of ["b.vhd", "a.vhd", "Z.vhd", ".dot.vhd", "x.raw", "sub [1]/c\n.vhd"]) {
      writeFileSync(join(folder, name), "");
    }
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it("sorts names by their bytes", () => {
    expect(glob(`${folder}/*.vhd`).paths).toEqual(["Z", "a", "b"].map((name) => `${folder}/${name}.vhd`));
    expect(glob(`${folder}/{b,a}.vhd`).paths).toEqual(["b", "a"].map((name) => `${folder}/${name}.vhd`));
  });

  it("goes through folders, and says which can't be read", () => {
    expect(glob(`${folder}/*/*`).paths).toEqual([`${folder}/sub [1]/c\n.vhd`]);
    expect(glob(`${folder}/sub \\[1]/*.vhd`).paths).toHaveLength(1);
    expect(glob(`${folder}/x.raw/*`).failures).toEqual([{ path: `${folder}/x.raw`, errno: 20 }]);
    expect(glob(`${folder}/missing/*`).failures).toEqual([{ path: `${folder}/missing`, errno: 2 }]);
    expect(glob(`${folder}/missing/x`)).toEqual({ paths: [], failures: [] });
  });
});
