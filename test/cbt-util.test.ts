// td-util and cbt-util as storage managers call them.

import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { MIB } from "./support/data.ts";
import { temporaryDirectory } from "./support/run.ts";
import { builtCommand, runIn, type ToolResult } from "./support/tools.ts";

function toolIn(name: string, folder: string): (...args: string[]) => ToolResult {
  return (...args) => runIn(folder, builtCommand(name), args);
}

function said(result: ToolResult): string {
  expect(result).toMatchObject({ status: 0, stderr: "" });
  return result.stdout.toString();
}

describe("td-util", () => {
  test("makes and describes images", () => {
    const folder = temporaryDirectory();
    const tdUtil = toolIn("td-util", folder);
    said(tdUtil("create", "vhd", "20", "base.vhd"));
    expect(said(tdUtil("query", "vhd", "-v", "base.vhd"))).toBe("20\n");
    expect(said(tdUtil("query", "vhd", "-p", "base.vhd"))).toBe("base.vhd has no parent\n");
    // Nothing was written to the base, but it is the end of the chain.
    said(tdUtil("snapshot", "vhd", "child.vhd", "base.vhd"));
    for (const options of ["-vpf", "-vpfb"]) {
      const [size, parent, hidden, end] = said(tdUtil("query", "vhd", options, "child.vhd")).split("\n");
      expect([size, parent, hidden?.split(" ")[1], end]).toEqual(["20", join(folder, "base.vhd"), "0", ""]);
    }
    expect(said(tdUtil("query", "vhd", "-d", "child.vhd"))).toBe("chain depth: 2\n");
    said(tdUtil("set", "vhd", "base.vhd", "hidden", "1"));
    expect(said(tdUtil("query", "vhd", "-f", "base.vhd"))).toBe("hidden: 1\n");
  });

  test("makes and describes raw images", () => {
    const folder = temporaryDirectory();
    const tdUtil = toolIn("td-util", folder);
    said(tdUtil("create", "aio", "-r", "3", "disk.img"));
    expect(statSync(join(folder, "disk.img")).size).toBe(3 * MIB);
    expect(said(tdUtil("query", "aio", "-vpf", "disk.img"))).toBe("3\ndisk.img has no parent\nhidden: 0\n");
    expect(tdUtil("create", "aio", "3", "other.img")).toMatchObject({ status: 22 });
    expect(readdirSync(folder)).toEqual(["disk.img"]);
  });

  test("says what it can't do", () => {
    const tdUtil = toolIn("td-util", temporaryDirectory());
    expect(tdUtil()).toMatchObject({ status: 255, stderr: expect.stringContaining("Tapdisk Utilities") });
    expect(tdUtil("bogus")).toMatchObject({ status: 255, stderr: expect.stringMatching(/^invalid COMMAND bogus\n/) });
    expect(tdUtil("query", "vhd", "-v", "none.vhd")).toMatchObject({ status: 2 });
    expect(tdUtil("query", "vhd", "-v", "none.vhd").stdout.toString()).toBe("failed opening none.vhd: -2\n");
    expect(tdUtil("snapshot", "aio", "a", "b")).toMatchObject({ status: 22 });
    expect(tdUtil("snapshot", "vhd", "a", "b")).toMatchObject({
      status: 2,
      stderr: expect.stringContaining("File b not found"),
    });
    expect(tdUtil("create", "vhd", "20")).toMatchObject({
      status: 22,
      stderr: expect.stringContaining("usage: td-util create"),
    });
  });
});

describe("cbt-util", () => {
  const [one, other] = ["00112233-4455-6677-8899-aabbccddeeff", "ffeeddcc-bbaa-9988-7766-554433221100"] as const;

  test("makes a log and tells its fields", () => {
    const folder = temporaryDirectory();
    const cbtUtil = toolIn("cbt-util", folder);
    said(cbtUtil("create", "-n", "disk.log", "-s", `${20 * MIB}`));
    // 320 blocks of 64 KiB: five words of 64 bits.
    const file = readFileSync(join(folder, "disk.log"));
    expect(file.length).toBe(48 + 40);
    expect(file.readBigUInt64LE(40)).toBe(BigInt(20 * MIB));
    expect(said(cbtUtil("get", "-n", "disk.log", "-s"))).toBe(`${20 * MIB}\n`);
    expect(said(cbtUtil("get", "-n", "disk.log", "-f"))).toBe("0\n");
    said(cbtUtil("set", "-n", "disk.log", "-p", one, "-c", other));
    said(cbtUtil("set", "-n", "disk.log", "-f", "1"));
    expect(said(cbtUtil("get", "-n", "disk.log", "-p"))).toBe(`${one}\n`);
    expect(said(cbtUtil("get", "-n", "disk.log", "-c"))).toBe(`${other}\n`);
    expect(said(cbtUtil("get", "-n", "disk.log", "-f"))).toBe("1\n");
    expect(readFileSync(join(folder, "disk.log")).toString("hex", 0, 16)).toBe(one.replaceAll("-", ""));
    expect(cbtUtil("get", "-n", "disk.log", "-b").stdout).toEqual(Buffer.alloc(40));
    expect(readdirSync(folder)).toEqual(["disk.log"]);
  });

  test("grows logs and merges them", () => {
    const folder = temporaryDirectory();
    const cbtUtil = toolIn("cbt-util", folder);
    const change = (name: string, blocks: readonly number[]) => {
      const file = readFileSync(join(folder, name));
      for (const block of blocks) file[48 + (block >> 3)] = (file[48 + (block >> 3)] ?? 0) | (1 << (block & 7));
      writeFileSync(join(folder, name), file);
    };
    const changed = (name: string) => {
      const bits = cbtUtil("get", "-n", name, "-b").stdout;
      return Array.from({ length: bits.length * 8 }, (_, block) => block).filter(
        (block) => ((bits[block >> 3] ?? 0) >> (block & 7)) & 1,
      );
    };
    said(cbtUtil("create", "-n", "parent.log", "-s", `${20 * MIB}`));
    said(cbtUtil("create", "-n", "child.log", "-s", `${20 * MIB}`));
    change("parent.log", [0, 7, 64, 319]);
    change("child.log", [1, 7]);
    said(cbtUtil("set", "-n", "child.log", "-s", `${40 * MIB}`));
    expect(changed("child.log")).toEqual([1, 7]);
    said(cbtUtil("coalesce", "-p", "parent.log", "-c", "child.log"));
    expect(changed("child.log")).toEqual([0, 1, 7, 64, 319]);
    expect(changed("parent.log")).toEqual([0, 7, 64, 319]);
    expect(cbtUtil("coalesce", "-p", "child.log", "-c", "parent.log")).toMatchObject({ status: 22 });
    expect(cbtUtil("set", "-n", "child.log", "-s", `${20 * MIB}`)).toMatchObject({ status: 22 });
    expect(changed("child.log")).toEqual([0, 1, 7, 64, 319]);
  });

  test("refuses what is no log, and no sense", () => {
    const folder = temporaryDirectory();
    const cbtUtil = toolIn("cbt-util", folder);
    writeFileSync(join(folder, "short"), "x");
    writeFileSync(join(folder, "huge"), Buffer.alloc(60, 0xff));
    expect(cbtUtil("get", "-n", "none", "-s")).toMatchObject({ status: 2 });
    expect(cbtUtil("get", "-n", "short", "-s")).toMatchObject({ status: 5 });
    expect(cbtUtil("get", "-n", "huge", "-b")).toMatchObject({ status: 5 });
    expect(cbtUtil("get", "-n", "short", "-s", "-b")).toMatchObject({ status: 22 });
    expect(cbtUtil("set", "-n", "short", "-p", "not-a-uuid")).toMatchObject({ status: 5 });
    expect(cbtUtil()).toMatchObject({ status: 22 });
    expect(cbtUtil("bogus")).toMatchObject({ status: 0, stderr: expect.stringMatching(/^invalid COMMAND bogus\n/i) });
  });
});
