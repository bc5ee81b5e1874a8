// vhd-coalesce on real files: what FATtools and tapdisk read before, during and after merges, and after the program was killed.

import { copyFileSync, existsSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { scattered } from "./support/chains.ts";
import { expectSame, MIB, pattern, randomNumbers } from "./support/data.ts";
import { createWithFatTools, readWithFatTools } from "./support/fattools.ts";
import { contentWith, type Extent, readThrough, readWithQemu, writeThrough } from "./support/images.ts";
import { namedLoopDevice } from "./support/loop.ts";
import { type Outcome, outcomeOf, RunningProgram, run, temporaryDirectory } from "./support/run.ts";
import { serve, whileServed } from "./support/tapdisk.ts";
import { builtCommand, writeDisk } from "./support/tools.ts";

const program = join(import.meta.dirname, "../build/bin/vhd-coalesce");
const SIZE = 48 * MIB;
const BLOCK = 2 * MIB;
const NAMES = ["base", "middle", "child", "leaf"] as const;

function coalesce(...args: string[]): Promise<Outcome> {
  return outcomeOf(program, args, { seconds: 60 });
}

interface Chain {
  readonly folder: string;
  /** Base first. */
  readonly paths: readonly [string, string, string, string];
  /** What each reads as. */
  readonly contents: readonly [Buffer, Buffer, Buffer, Buffer];
}

/** Four images, with partial bitmaps on every level. */
async function makeChain(size = SIZE): Promise<Chain> {
  const folder = temporaryDirectory();
  const images = NAMES.map((name, level) => ({
    path: join(folder, `${name}.vhd`),
    extents: scattered(size, 24, level + 1),
  }));
  await createWithFatTools(images, { size, blockSize: BLOCK });
  const contents = images.map((_, level) =>
    contentWith(
      size,
      images.slice(0, level + 1).flatMap(({ extents }) => extents),
    ),
  );
  return {
    folder,
    paths: images.map(({ path }) => path) as unknown as Chain["paths"],
    contents: contents as unknown as Chain["contents"],
  };
}

function readServed(path: string): Promise<Buffer> {
  return whileServed(`vhd:${path}`, ["--read-only"], readThrough);
}

describe("vhd-coalesce", () => {
  test("merges a range, moves the children over and removes what is not needed", async () => {
    const { folder, paths, contents } = await makeChain();
    const [base, , child, leaf] = paths;
    const { status, stdout, stderr } = await coalesce(child, "--into", base, "--reparent", "--remove", "--json");
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    const events = stdout
      .trim()
      .split("\n")
      .map((line): unknown => JSON.parse(line));
    expect(events.filter((event) => (event as { event: string }).event !== "progress")).toEqual([
      expect.objectContaining({ event: "merged", target: base, resumedAt: 0 }),
      { event: "reparented", path: leaf, parent: base },
      { event: "removed", path: child },
      { event: "removed", path: paths[1] },
    ]);
    expect(readdirSync(folder).sort()).toEqual(["base.vhd", "leaf.vhd"]);
    expectSame(await readServed(leaf), contents[3], "the leaf");
    expectSame(await readWithFatTools(base), contents[2], "the base");
  });

  test("says what it would take, and changes nothing", async () => {
    const { paths } = await makeChain();
    const before = paths.map((path) => readFileSync(path));
    const { status, stdout } = await coalesce(paths[1], "--dry-run");
    expect(status).toBe(0);
    expect(stdout).toMatch(
      /^target: .*base\.vhd\nto copy: .*\nblocks to allocate: \d+\nspace needed: at most .*free\)\n/,
    );
    const events = await coalesce(paths[1], "--dry-run", "--json");
    expect(JSON.parse(events.stdout)).toMatchObject({ event: "estimate", target: paths[0], zeroBytes: 0 });
    for (const [index, path] of paths.entries()) expect(readFileSync(path).equals(before[index] as Buffer)).toBe(true);
    const schema: unknown = JSON.parse((await coalesce("--json-schema")).stdout);
    expect(schema).toMatchObject({ oneOf: expect.any(Array) });
  });

  test("refuses what would change what others read", async () => {
    const { folder, paths, contents } = await makeChain();
    const [base, middle, child, leaf] = paths;
    const sibling = join(folder, "sibling.vhd");
    copyFileSync(child, sibling);
    const refused = await coalesce(child);
    expect(refused).toMatchObject({ status: 1, stdout: "" });
    expect(refused.stderr).toContain(`${sibling}: other children`);
    expect((await coalesce(child, "--into", leaf)).stderr).toContain("no ancestor");
    expect((await coalesce(base)).stderr).toContain("no parent");
    expect((await coalesce(child, "--format", "raw")).status).toBe(2);
    expectSame(await readWithFatTools(sibling), contents[2], "the sibling");
    // A child that has children is not removed.
    const kept = await coalesce(middle, "--remove");
    expect(kept.status).toBe(1);
    expect(kept.stderr).toContain("is not removed");
    expect(existsSync(middle)).toBe(true);
    const forced = await coalesce(child, "--force");
    expect(forced.status).toBe(0);
    expectSame(await readWithFatTools(leaf), contents[3], "the leaf");
    expectSame(await readWithFatTools(middle), contents[2], "the parent");
  });

  test("merges images on block devices, and removes no device", async ({ skip }) => {
    const folder = temporaryDirectory();
    const backing = temporaryDirectory();
    const vhdUtil = (...args: string[]) => run(builtCommand("vhd-util"), args);
    const device = async (name: string) => {
      writeFileSync(join(backing, name), Buffer.alloc(64 * MIB));
      return (
        (await namedLoopDevice(join(backing, name), join(folder, name))) ?? skip("loop devices are not permitted here")
      );
    };
    const [base, child] = [await device("base"), await device("child")];
    await vhdUtil("create", "-n", base, "-s", "20");
    await writeDisk(base, [{ offset: 0, data: pattern(3 * MIB, 1) }]);
    await vhdUtil("snapshot", "-n", child, "-p", base);
    const extents = scattered(20 * MIB, 12, 2);
    await writeDisk(child, extents);
    const content = contentWith(20 * MIB, [{ offset: 0, data: pattern(3 * MIB, 1) }, ...extents]);
    // Another one, by a link too.
    const sibling = await device("sibling");
    await vhdUtil("snapshot", "-n", sibling, "-p", base);
    symlinkSync("sibling", join(folder, "link"));
    symlinkSync("child", join(folder, "same"));
    const refused = await coalesce(child);
    expect(refused).toMatchObject({ status: 1, stdout: "" });
    expect(refused.stderr).toMatch(/^vhd-coalesce: \S+(link|sibling): other children/);
    await vhdUtil("create", "-n", sibling, "-s", "4");
    const kept = await coalesce(child, "--remove");
    expect(kept).toMatchObject({ status: 1, stdout: "" });
    expect(kept.stderr).toContain("is a block device, which --remove can't remove");
    const estimated = JSON.parse((await coalesce(child, "--dry-run", "--json")).stdout);
    expect(estimated).toMatchObject({ event: "estimate", free: null, seconds: null });
    expect(await coalesce(child)).toMatchObject({ status: 0, stderr: "" });
    expectSame(await readServed(base), content, "the parent");
    expectSame(await readServed(child), content, "the child");
    expect(readdirSync(folder).sort()).toEqual(["base", "child", "link", "same", "sibling"]);
    const damaged = join(folder, "child");
    await run("dd", ["if=/dev/zero", `of=${damaged}`, "bs=512", "count=1", "conv=notrunc"]);
    const repair = (...args: string[]) => outcomeOf(builtCommand("vhd-check"), ["--repair", ...args, damaged]);
    const unsaid = await repair();
    expect(unsaid.status).toBe(8);
    expect(unsaid.stderr).toContain("is a block device: --undo-file has to say");
    expect((await outcomeOf(builtCommand("vhd-check"), [damaged])).status).toBe(4);
    expect((await repair("--undo-file", join(backing, "undo"))).status).toBe(1);
    expectSame(await readServed(child), content, "the mended child");
  });

  test("copies a chain into a new image", async () => {
    const { folder, paths, contents } = await makeChain();
    const output = join(folder, "disk.img");
    const { status, stderr } = await coalesce(paths[3], "--output", output, "--format", "raw", "--sparse");
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expectSame(readFileSync(output), contents[3], "the new image");
    expect((await coalesce(paths[3], "--output", output, "--format", "raw")).stderr).toContain("exists already");
    // A limit of the shell's, in place of a file system without space.
    const limited = await outcomeOf("bash", [
      "-c",
      `ulimit -f 2048; trap '' XFSZ; "${program}" "${paths[3]}" --output "${join(folder, "none.vhd")}"`,
    ]);
    expect(limited.status).toBe(1);
    expect(readdirSync(folder).filter((name) => name.startsWith("none"))).toEqual([]);
    const dynamic = join(folder, "dynamic.vhd");
    expect((await coalesce(paths[3], "--output", dynamic)).status).toBe(0);
    expectSame(await readWithQemu(dynamic), contents[3], "the new dynamic image");
    const fixed = join(folder, "fixed.vhd");
    expect((await coalesce(paths[3], "--output", fixed, "--format", "fixed")).status).toBe(0);
    expectSame(readFileSync(fixed).subarray(0, SIZE), contents[3], "the new fixed image");
    const child = join(folder, "new-child.vhd");
    expect((await coalesce(paths[3], "--output", child, "--into", paths[1])).status).toBe(0);
    expectSame(await readServed(child), contents[3], "the new child");
    expectSame(await readWithFatTools(paths[1]), contents[1], "its parent");
    expect(readdirSync(folder).filter((name) => !name.endsWith(".vhd"))).toEqual(["disk.img"]);
  });

  test("merges under a disk that is served", async () => {
    const { paths, contents } = await makeChain();
    const [base, , child, leaf] = paths;
    const tapdisk = await serve(`vhd:${leaf}`);
    const refused = await coalesce(leaf);
    expect(refused.status).toBe(1);
    expect(refused.stderr).toMatch(/in use/);
    const merge = new RunningProgram(program, [child, "--into", base]);
    let over = false;
    const end = merge.outcome(60).finally(() => {
      over = true;
    });
    let reads = 0;
    while (!over || reads < 3) {
      expectSame(await readThrough(tapdisk), contents[3], `read ${reads++}`);
    }
    expect((await end).status).toBe(0);
    await tapdisk.stop();
    expectSame(await readWithFatTools(base), contents[2], "the base");
    expectSame(await readWithFatTools(leaf), contents[3], "the leaf");
  });

  test("goes on after it was killed or interrupted, as often as it was", { timeout: 120_000 }, async () => {
    const size = 256 * MIB;
    const folder = temporaryDirectory();
    const [base, child] = [join(folder, "base.vhd"), join(folder, "child.vhd")];
    await createWithFatTools(
      [
        { path: base, extents: scattered(size, 20, 1) },
        { path: child, extents: scattered(size, 20, 2) },
      ],
      { size, blockSize: BLOCK },
    );
    const large: Extent[] = Array.from({ length: 30 }, (_, index) => ({
      offset: index * 8 * MIB + 12_288,
      data: pattern(5 * MIB, index + 10),
    }));
    await whileServed(`vhd:${child}`, [], (tapdisk) => writeThrough(tapdisk, large));
    const content = contentWith(size, [...scattered(size, 20, 1), ...scattered(size, 20, 2), ...large]);
    expectSame(await readServed(child), content, "the child");
    // A record is only good for what wasn't changed a moment ago.
    await new Promise((resolve) => setTimeout(resolve, 3000));
    const random = randomNumbers(7);
    for (let round = 0; round < 8; round++) {
      const running = new RunningProgram(program, [child, "--resume", "--record-every", "16M"]);
      const timer = setTimeout(() => running.signal(round % 4 === 3 ? "SIGINT" : "SIGKILL"), 100 + random(300));
      const { status } = await running.outcome(60);
      clearTimeout(timer);
      if (round % 4 === 3) {
        // -2: before it had begun.
        expect([0, 130, -2]).toContain(status);
        expectSame(await readServed(child), content, `the child after round ${round}`);
      }
    }
    const record = `${base}.coalesce`;
    const isRecorded = () => existsSync(record) && statSync(record).size > 0;
    for (let round = 0; round < 20 && !isRecorded(); round++) {
      const running = new RunningProgram(program, [child, "--record-every", "16M"]);
      const outcome = running.outcome(60);
      const watch = setInterval(() => isRecorded() && running.signal("SIGKILL"), 1);
      await outcome.finally(() => clearInterval(watch));
    }
    const last = await coalesce(child, "--resume");
    expect(last).toMatchObject({ status: 0, stderr: expect.stringMatching(/^went on at sector \d{5,}\n$/) });
    expect(readdirSync(folder).sort()).toEqual(["base.vhd", "child.vhd"]);
    expectSame(await readServed(child), content, "the child");
    expectSame(await readWithFatTools(base), content, "the base");
  });
});
