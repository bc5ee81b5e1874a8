// Chains of differencing images: what FATtools wrote at every level is read, and what tapdisk writes FATtools reads.

import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { partialBlocks, scattered } from "./support/chains.ts";
import { expectSame, MIB, pattern, SECTOR, sha256 } from "./support/data.ts";
import { createWithFatTools, readWithFatTools } from "./support/fattools.ts";
import { applyExtents, contentWith, readThrough, writeThrough } from "./support/images.ts";
import { temporaryDirectory } from "./support/run.ts";
import { refused, whileServed } from "./support/tapdisk.ts";

/** The last block is short. */
const SIZE = 11 * MIB + 3 * SECTOR;

interface Chain {
  /** The folder that everything is in. */
  readonly folder: string;
  /** Base first. */
  readonly paths: readonly string[];
  readonly base: string;
  readonly leaf: string;
  /** What the disk holds. */
  readonly content: Buffer;
}

/** A base and its children, each written at random, all by FATtools; folders as they are named. */
async function makeChain(blockSize: number, folders: readonly string[], seed: number): Promise<Chain> {
  const folder = temporaryDirectory();
  const content = contentWith(SIZE, []);
  const images = folders.map((name, level) => {
    const path = join(folder, name, `level ${level}.vhd`);
    const extents = scattered(SIZE, 6, seed * 10 + level);
    mkdirSync(dirname(path), { recursive: true });
    applyExtents(content, extents);
    return { path, extents };
  });
  await createWithFatTools(images, { size: SIZE, blockSize });
  const paths = images.map(({ path }) => path);
  for (const path of paths) expect(partialBlocks(path)).toBeGreaterThan(1);
  return { folder, paths, base: paths[0] ?? "", leaf: paths.at(-1) ?? "", content };
}

const sums = (paths: readonly string[]) => paths.map((path) => sha256(readFileSync(path)));

describe("chains of FATtools'", () => {
  test.each([
    ["a child", 2 * MIB, ["", ""], "uring"],
    ["a child in another folder", MIB / 2, ["base", "children/of it"], "threads"],
    ["three levels of children", 2 * MIB, ["", "", "", ""], "threads"],
    ["three levels of children in folders", 4 * MIB, ["", "a", "a", "a/b"], "uring"],
  ])("%s: read as FATtools reads, and written as it reads", async (_, blockSize, folders, io) => {
    const { paths, leaf, content } = await makeChain(blockSize, folders, 1);
    const before = sums(paths);
    expectSame(await readWithFatTools(leaf), content, "FATtools' first reading");
    expectSame(await whileServed(`vhd:${leaf}`, ["--io", io, "--read-only"], readThrough), content, "read-only");
    expect(sums(paths)).toEqual(before);

    // Pieces of blocks, present and absent at every level; two whole blocks, and one sector on each side of them.
    const whole = { offset: 4 * MIB - SECTOR, data: pattern(4 * MIB + 2 * SECTOR, 3) };
    const around = (offset: number) => offset < 4 * MIB - 700 * SECTOR || offset > 9 * MIB;
    const extents = [whole, ...scattered(SIZE, 23, 99).filter(({ offset }) => around(offset))];
    await whileServed(`vhd:${leaf}`, ["--io", io], (tapdisk) => writeThrough(tapdisk, extents));
    applyExtents(content, extents);
    expectSame(await readWithFatTools(leaf), content, "by FATtools");
    expectSame(await whileServed(`vhd:${leaf}`, ["--io", io], readThrough), content, "by the next tapdisk");
    expect(partialBlocks(leaf)).toBeGreaterThan(0);
    expect(sums(paths.slice(0, -1))).toEqual(before.slice(0, -1));
  });

  test("served for writing, but not written, stay as they are", async () => {
    const { paths, leaf, content } = await makeChain(2 * MIB, ["", ""], 2);
    const before = sums(paths);
    expectSame(await whileServed(`vhd:${leaf}`, [], readThrough), content, "served for writing");
    expect(sums(paths)).toEqual(before);
  });
});

describe("parents", () => {
  test("are found where the whole chain was moved to, by their relative names", async () => {
    const { folder, leaf, content } = await makeChain(2 * MIB, ["base", "a", "a/b"], 3);
    const moved = join(temporaryDirectory(), "elsewhere");
    renameSync(folder, moved);
    mkdirSync(folder); // its end is the test's
    const path = leaf.replace(folder, moved);
    expectSame(await whileServed(`vhd:${path}`, [], readThrough), content, "after the move");
  });

  test("are found by their absolute names when only the leaf was moved", async () => {
    const { leaf, content } = await makeChain(2 * MIB, ["base", "a"], 4);
    const moved = join(temporaryDirectory(), "leaf.vhd");
    renameSync(leaf, moved);
    expectSame(await readWithFatTools(moved), content, "by FATtools");
    expectSame(await whileServed(`vhd:${moved}`, [], readThrough), content, "by tapdisk");
  });

  test.each([0, 1])("that are missing are named, and nothing changes: level %i of 3", async (level) => {
    const { paths, leaf } = await makeChain(2 * MIB, ["", "", ""], 5);
    const missing = paths[level] ?? "";
    rmSync(missing);
    const rest = paths.filter((path) => path !== missing);
    const before = sums(rest);
    const { stderr } = await refused(`vhd:${leaf}`);
    expect(stderr).toContain(`${paths[level + 1]}: parent: no parent is found`);
    expect(stderr).toContain(`${missing} does not exist`);
    expect(stderr).not.toContain("    at "); // no stack
    expect(sums(rest)).toEqual(before);
    expect(existsSync(missing)).toBe(false);
  });

  test("that were replaced by another image are named, and nothing changes", async () => {
    const { paths, base, leaf } = await makeChain(2 * MIB, ["", ""], 6);
    const { base: other } = await makeChain(2 * MIB, [""], 6);
    copyFileSync(other, base);
    const before = sums(paths);
    const uuid = (file: string, at: number) => readFileSync(file).toString("hex", at, at + 16);
    const { stderr } = await refused(`vhd:${leaf}`);
    expect(stderr).toContain(leaf);
    expect(stderr).toContain(`${base} is another image`);
    const found = /UUID (\S+), expected ([^)\s]+)\)/.exec(stderr);
    expect(found?.[1]?.replaceAll("-", "")).toBe(uuid(other, 68));
    expect(found?.[2]?.replaceAll("-", "")).toBe(uuid(leaf, 512 + 40));
    expect(sums(paths)).toEqual(before);
  });
});
