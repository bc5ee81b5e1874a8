// vhd-check as a program: real images of every writer are clean, what is wrong is told to people and to programs, mended and
// taken back; disks in use are left alone.

import { copyFileSync, existsSync, linkSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { describe, expect, test } from "vitest";
import * as z from "zod";
import { loadEngineModule } from "../ts/engine/load-node.ts";
import { operation, recordWords } from "../ts/engine/records.ts";
import { JobRunner } from "../ts/host/job-runner.ts";
import { portModule } from "../ts/tapdisk/port.ts";
import { checkReportSchema } from "../ts/tools/vhd-check/schema.ts";
import { scattered } from "./support/chains.ts";
import { expectSame, MIB, pattern, randomNumbers } from "./support/data.ts";
import { createWithFatTools } from "./support/fattools.ts";
import { contentWith, createWithQemu, makeWithQemu, readWithQemu, writeThrough } from "./support/images.ts";
import { LARGEST, makeLarge } from "./support/large-image.ts";
import { RunningProgram, temporaryDirectory } from "./support/run.ts";
import { whileServed } from "./support/tapdisk.ts";
import { checked, checkWith, codesOf, vhdCheck } from "./support/vhd-check.ts";
import { makeDynamic, makeFixed } from "./support/vhd-lib.ts";
import { windowsImage, windowsImages } from "./support/windows.ts";

const SIZE = 21 * MIB;

/** A dynamic image of qemu's with some data. */
async function image(name = "disk.vhd"): Promise<string> {
  const path = join(temporaryDirectory(), name);
  await makeWithQemu(path, contentWith(SIZE, scattered(SIZE, 5, 1)), { subformat: "dynamic", forceSize: true });
  return path;
}

/** Overwrites a part of a file. */
function damage(path: string, offset: number, bytes: Uint8Array): void {
  const file = readFileSync(path);
  file.set(bytes, offset < 0 ? file.length + offset : offset);
  writeFileSync(path, file);
}

describe("images are clean that were written by", () => {
  test.each(["dynamic", "fixed"] as const)("qemu (%s)", async (subformat) => {
    for (const forceSize of [true, false]) {
      const path = join(temporaryDirectory(), "disk.vhd");
      await makeWithQemu(path, contentWith(SIZE, scattered(SIZE, 5, 1)), { subformat, forceSize });
      // qemu rounds up to a geometry, or gives one that is too large for every disk.
      const codes = [
        ...(subformat === "dynamic" ? ["blocks-unaligned"] : []),
        ...(forceSize ? ["footer-primary-geometry"] : []),
      ];
      expect(await codesOf("--data", path)).toEqual({ status: 0, codes });
    }
  });

  test("vhd-lib", async () => {
    const folder = temporaryDirectory();
    const fragments = [0, 1, 40].map((grain) => ({ logicalAddressBytes: grain * 65536, data: pattern(65536, grain) }));
    await makeDynamic(join(folder, "dynamic.vhd"), SIZE, fragments);
    await makeFixed(join(folder, "fixed.vhd"), SIZE, fragments);
    const { status, codes } = await codesOf("--data", folder);
    expect({ status, codes }).toEqual({ status: 0, codes: ["blocks-unaligned", "footer-primary-timestamp"] });
  });

  test("FATtools, as a chain", async () => {
    const folder = temporaryDirectory();
    const names = ["base.vhd", "children/one.vhd", "children/two.vhd"];
    mkdirSync(join(folder, "children"));
    const images = names.map((name, level) => ({ path: join(folder, name), extents: scattered(SIZE, 4, level) }));
    await createWithFatTools(images, { size: SIZE, blockSize: 2 * MIB });
    const leaf = images[2]?.path ?? "";
    const { status, results } = await checked("--chain", "--data", "--stats", leaf);
    expect(status).toBe(0);
    const [result] = results;
    expect(result?.images.map(({ path, parent }) => [resolve(path), parent === null ? null : resolve(parent)])).toEqual(
      [
        [leaf, images[1]?.path],
        [images[1]?.path, images[0]?.path],
        [images[0]?.path, null],
      ],
    );
    for (const [level, { stats }] of (result?.images ?? []).entries()) {
      const sectors = scattered(SIZE, 4, 2 - level).reduce((sum, { data }) => sum + data.length / 512, 0);
      // FATtools leaves zeros out, and takes whole blocks of a base.
      if (level < 2) expect(stats?.written).toBeLessThanOrEqual(sectors);
      expect(stats?.written).toBeGreaterThan(0);
    }
  });

  test.each(windowsImages)("Windows ($name)", async (one) => {
    const path = join(temporaryDirectory(), one.name);
    writeFileSync(path, await windowsImage(one));
    const { status, results } = await checked("--data", path);
    expect({ status, type: results[0]?.images[0]?.disk?.type }).toEqual({ status: 0, type: one.type });
  });

  test("tapdisk, also while it writes", async () => {
    const path = join(temporaryDirectory(), "disk.vhd");
    await createWithQemu(path, 64, { subformat: "dynamic" });
    await whileServed(`vhd:${path}`, [], async (tapdisk) => {
      await writeThrough(tapdisk, scattered(64 * MIB, 9, 3));
      const { status, results } = await checked(path);
      expect({ status, inUse: results[0]?.images[0]?.inUse }).toEqual({ status: 0, inUse: true });
      expect((await checkWith(path)).stdout).toContain("in use: what was found may have changed meanwhile");
      // Nobody mends a disk that a guest writes to.
      damage(path, 0, Buffer.alloc(512));
      const { status: refused, stderr } = await checkWith("--repair", path);
      expect({ refused, stderr }).toEqual({ refused: 8, stderr: expect.stringContaining(path) });
      expect(readFileSync(path).subarray(0, 512)).toEqual(Buffer.alloc(512));
    });
    expect((await checkWith("--repair", path)).status).toBe(1);
    expect(await codesOf("--data", path)).toMatchObject({ status: 0 });
  });
});

describe("what is wrong", () => {
  test("is told in words, with its place, its meaning and what mends it", async () => {
    const path = await image();
    damage(path, -512, Buffer.alloc(512, 7));
    const { status, stdout, stderr } = await checkWith(path);
    expect({ status, stderr }).toEqual({ status: 4, stderr: "" });
    const at = readFileSync(path).length - 512;
    expect(stdout).toMatch(new RegExp(`^${path}: wrong \\(1 error, 2 notes\\)\n`));
    expect(stdout).toContain(`  error footer-primary-cookie (primary footer at ${at})\n`);
    expect(stdout).toContain("expected conectix");
    expect(stdout).toContain("Remedy: vhd-check --repair");
    expect(stdout).not.toContain("blocks-unaligned");
    expect((await checkWith("--notes", path)).stdout).toContain("note blocks-unaligned");
  });

  test("is planned, mended and taken back", async () => {
    const path = await image();
    const content = await readWithQemu(path);
    damage(path, -512, Buffer.alloc(512, 7));
    const broken = readFileSync(path);
    const dry = await checkWith("--dry-run", path);
    expect({ status: dry.status, same: readFileSync(path).equals(broken) }).toEqual({ status: 4, same: true });
    expect(dry.stdout).toMatch(/would: write the footer at offset \d+, .* \(footer-primary-cookie\)/);
    const { status, stdout } = await checkWith("--repair", path);
    expect(status).toBe(1);
    expect(stdout).toMatch(/did: write the footer at offset \d+/);
    expect(stdout).toContain(`vhd-check --undo ${path}.undo`);
    expectSame(await readWithQemu(path), content, "by qemu");
    expect(await checkWith(path)).toEqual({ status: 0, stdout: `${path}: clean (2 notes)\n`, stderr: "" });
    expect((await checkWith("--undo", `${path}.undo`)).stdout).toBe(`${path}: 1 change was taken back\n`);
    expect(readFileSync(path).equals(broken)).toBe(true);
    expect(existsSync(`${path}.undo`)).toBe(false);
    // The undo file may be elsewhere, and is never overwritten.
    const undo = join(temporaryDirectory(), "saved");
    expect((await checkWith("--repair", "--undo-file", undo, path)).status).toBe(1);
    damage(path, 0, Buffer.alloc(512));
    const again = await checkWith("--repair", "--undo-file", undo, path);
    expect(again).toMatchObject({ status: 8, stderr: expect.stringContaining("earlier repair") });
    expect((await checkWith("--undo", undo, path)).stderr).toContain("changed since the repair");
  });

  test("is mended and can be taken back, however often that was killed", { timeout: 120_000 }, async () => {
    const path = await image();
    const content = await readWithQemu(path);
    damage(path, -512, Buffer.alloc(512, 7));
    const broken = readFileSync(path);
    const undo = `${path}.undo`;
    const random = randomNumbers(11);
    const killed = { before: 0, begun: 0 };
    for (let round = 0; round < 12; round++) {
      writeFileSync(path, broken);
      const running = new RunningProgram(vhdCheck, ["--repair", path]);
      // From when it may have begun on: the moment of the kill is anywhere in what follows.
      const watch = setInterval(() => existsSync(undo) && random(2) === 0 && running.signal("SIGKILL"), 0);
      const timer = setTimeout(() => running.signal("SIGKILL"), round % 3 === 0 ? random(150) : 20_000);
      await running.outcome(60).finally(() => {
        clearInterval(watch);
        clearTimeout(timer);
      });
      killed[existsSync(undo) ? "begun" : "before"]++;
      const again = await checkWith("--repair", path);
      expect([0, 1]).toContain(again.status);
      expectSame(await readWithQemu(path), content, `after round ${round}`);
      expect((await codesOf("--data", path)).status).toBe(0);
      expect((await checkWith("--undo", undo)).status).toBe(0);
      expect(readFileSync(path).equals(broken)).toBe(true);
      expect(existsSync(undo)).toBe(false);
    }
    expect(killed.begun).toBeGreaterThan(0);
  });

  test("that can't be mended is left with a reason", async () => {
    const path = await image();
    const table = 1536;
    const file = readFileSync(path);
    const [first, second] = [0, 1].map((block) => file.subarray(table + block * 4, table + block * 4 + 4));
    if (first === undefined || second === undefined) throw new Error("the BAT is too short");
    expect(first.equals(Buffer.alloc(4, 0xff))).toBe(false);
    damage(path, table + 4, first);
    const { status, results } = await checked("--repair", path);
    expect(status).toBe(4);
    expect(results[0]?.images[0]?.left).toEqual([
      { code: "blocks-duplicate", why: expect.stringContaining("nothing tells which") },
    ]);
    expect(existsSync(`${path}.undo`)).toBe(false);
  });

  test("with several images is summed up in the exit status", async () => {
    const [good, left, mended] = [await image(), await image(), await image()];
    damage(left, 600, Buffer.from([1]));
    damage(mended, 0, Buffer.alloc(512));
    const missing = join(temporaryDirectory(), "missing.vhd");
    expect((await checkWith(good)).status).toBe(0);
    expect((await checkWith(good, left)).status).toBe(4);
    expect((await checkWith(good, missing)).status).toBe(8);
    const { status, stdout, stderr } = await checkWith("--repair", good, left, mended, missing);
    expect(status).toBe(1 + 4 + 8);
    expect(stderr).toMatch(new RegExp(`^vhd-check: ${missing}: .*No such file`));
    for (const [path, verdict] of [
      [good, "clean"],
      [left, "wrong"],
      [mended, "mended"],
    ]) {
      expect(stdout).toContain(`${path}: ${verdict}`);
    }
    expect((await checkWith("--json", missing)).status).toBe(8);
  });
});

test("the JSON is what its published schema says", async () => {
  const schemaFile = join(import.meta.dirname, "../build/share/tapvhd/vhd-check.schema.json");
  const schema = z.fromJSONSchema(JSON.parse(readFileSync(schemaFile, "utf8")));
  const [good, bad] = [await image(), await image()];
  damage(bad, 0, Buffer.alloc(512));
  for (const args of [["--stats", "--data", good], ["--dry-run", bad], ["--repair", bad], ["/nowhere.vhd"]]) {
    const { stdout } = await checkWith("--json", ...args);
    expect(stdout.split("\n").length).toBe(2);
    const parsed: unknown = JSON.parse(stdout);
    expect(schema.safeParse(parsed).error).toBeUndefined();
    expect(schema.safeParse({ ...Object(parsed), version: 2 }).success).toBe(false);
  }
});

describe("folders", () => {
  test("are searched for images, each of which is looked at once", async () => {
    const [folder, source] = [temporaryDirectory(), await image()];
    mkdirSync(join(folder, "a/b"), { recursive: true });
    const names = ["1.vhd", "2.VHD", "a/3.avhd", "a/b/4.vhd"];
    for (const name of names) copyFileSync(source, join(folder, name));
    writeFileSync(join(folder, "readme.txt"), "no image");
    symlinkSync(join(folder, "1.vhd"), join(folder, "a/link.vhd"));
    symlinkSync(folder, join(folder, "a/loop.vhd"));
    const { results } = await checked("--jobs", "3", folder, join(folder, "1.vhd"));
    expect(results.map(({ path, outcome }) => [path, outcome])).toEqual(
      names.map((name) => [join(folder, name), "clean"]),
    );
    expect(await checkWith(join(folder, "a"), temporaryDirectory())).toMatchObject({ status: 0 });
    expect((await checkWith(temporaryDirectory())).status).toBe(8);
  });
});

describe("the command line", () => {
  test("is checked", async () => {
    const path = await image();
    for (const args of [
      [],
      ["--quick", "--data", path],
      ["--repair", "--dry-run", path],
      ["--undo-file", "x", path],
      ["--jobs", "0", path],
      ["--ignore", "everything", path],
      ["--explain", "nonsense"],
      ["--frobnicate", path],
    ]) {
      const { status, stdout, stderr } = await checkWith(...args);
      expect({ args, status, stdout }).toEqual({ args, status: 16, stdout: "" });
      expect(stderr).toMatch(/^vhd-check: /);
    }
  });

  test("explains findings", async () => {
    const { stdout } = await checkWith("--explain", "blocks-overlap");
    expect(stdout).toMatch(/^blocks-overlap \(error\)\n {2}Two blocks .*\n {2}Remedy: .*\n$/);
    const all = z
      .array(z.object({ code: z.string() }))
      .parse(JSON.parse((await checkWith("--explain", "--json")).stdout));
    expect(all.length).toBeGreaterThan(90);
  });

  test("says what to ignore", async () => {
    const path = await image();
    const file = readFileSync(path);
    file.copy(file, 1536 + 4, 1536, 1536 + 4);
    writeFileSync(path, file);
    expect((await checkWith(path)).status).toBe(4);
    expect((await checkWith("--ignore", "overlaps", "--ignore", "timestamps", path)).status).toBe(0);
  });
});

describe("a full disk of 2040 GiB", () => {
  const large = () => {
    const path = join(temporaryDirectory(), "large.vhd");
    makeLarge(path, LARGEST);
    return path;
  };

  test("is checked with one small read for each block", async () => {
    const { Port } = portModule();
    const counts = { operations: 0, bytes: 0 };
    class CountingPort extends Port {
      constructor(options: ConstructorParameters<typeof Port>[0]) {
        super(options);
        // What the native constructor makes has the native class's methods.
        const [layout, turn] = [this.layout.bind(this), this.turn.bind(this)];
        let area = 0;
        this.layout = (areas) => {
          area = areas.operations.offset;
          layout(areas);
        };
        this.turn = (memory, operations, responses, timeout) => {
          const words = new DataView(memory.buffer, memory.byteOffset + area);
          for (let index = 0; index < operations; index++) {
            counts.bytes += words.getUint32((index * recordWords.op + operation.length) * 4, true);
          }
          counts.operations += operations;
          return turn(memory, operations, responses, timeout);
        };
      }
    }
    const runner = new JobRunner(loadEngineModule(), CountingPort);
    const report = checkReportSchema.parse(await runner.run({ job: "check", path: large() }));
    runner.close();
    const [found] = report.images;
    expect(found).toMatchObject({ complete: true, errors: 0, warnings: 0, disk: { allocatedBlocks: LARGEST } });
    expect(counts.operations).toBeGreaterThan(LARGEST);
    expect(counts.operations).toBeLessThan(LARGEST + 200);
    // The BAT, and a sector for each block.
    expect(counts.bytes).toBeLessThan(LARGEST * (4 + 512) + MIB);
  });

  test("is not finished when a signal comes", async () => {
    const [small, path] = [await image(), large()];
    const program = new RunningProgram(vhdCheck, [
      "--jobs",
      "1",
      small,
      ...Array.from({ length: 9 }, (_, index) => {
        const link = `${path}.${index}.vhd`;
        linkSync(path, link);
        return link;
      }),
    ]);
    expect(await program.firstLine(30)).toBe(`${small}: clean (2 notes)`);
    program.signal("SIGTERM");
    expect((await program.outcome(30)).status).toBe(143);
  });
});
