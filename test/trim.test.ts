// Discard and write zeroes over NBD: space goes back, zeros are zeros, and a parent never shows through them.

import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { scattered } from "./support/chains.ts";
import { expectSame, MIB, pattern, randomNumbers, SECTOR, sha256 } from "./support/data.ts";
import { createWithFatTools, readWithFatTools } from "./support/fattools.ts";
import { applyExtents, contentWith, createWithQemu, readThrough, readWithQemu } from "./support/images.ts";
import { loopDevice } from "./support/loop.ts";
import { command, commandFlag, NbdClient } from "./support/nbd-client.ts";
import { outcomeOf, RunningProgram, run, temporaryDirectory, until } from "./support/run.ts";
import { backends, serve, type Tapdisk, whileServed } from "./support/tapdisk.ts";

const SIZE = 20 * MIB;
const BLOCK = 2 * MIB;

const lengthOf = (path: string) => statSync(path).size;
/** What a file takes of its file system. */
const spaceOf = (path: string) => statSync(path).blocks * 512;

async function connected<T>({ socket }: Tapdisk, work: (client: NbdClient) => Promise<T>): Promise<T> {
  const client = await NbdClient.connect(socket);
  const result = await work(client);
  await client.close();
  return result;
}

async function must(reply: Promise<{ readonly error: number }>): Promise<void> {
  expect((await reply).error).toBe(0);
}

/** An empty image of each kind that has no parent: the disk as tapdisk is told of it, and its file. */
async function newDisk(kind: "dynamic" | "fixed" | "raw"): Promise<{ disk: string; path: string }> {
  const path = join(temporaryDirectory(), `disk.${kind}`);
  if (kind === "raw") writeFileSync(path, Buffer.alloc(SIZE));
  else await createWithQemu(path, SIZE / MIB, { subformat: kind, forceSize: true });
  return { disk: `${kind === "raw" ? "aio" : "vhd"}:${path}`, path };
}

const contentOf = (kind: string, path: string) => (kind === "raw" ? readFileSync(path) : readWithQemu(path));

describe.each(backends)("with --io %s", (io) => {
  test("blocks that are discarded give their space back, and are used again", async () => {
    const { disk, path } = await newDisk("dynamic");
    const content = pattern(SIZE, 1);
    const empty = lengthOf(path);
    const tapdisk = await serve(disk, "--io", io);
    await connected(tapdisk, async (client) => {
      for (let offset = 0; offset < 16 * MIB; offset += BLOCK) {
        await must(client.write(offset, content.subarray(offset, offset + BLOCK)));
      }
      await must(client.flush());
      const written = spaceOf(path);
      expect(written).toBeGreaterThanOrEqual(16 * MIB);
      // Not quite five blocks: four of them as a whole.
      await must(client.request(command.trim, BLOCK + SECTOR, 5 * BLOCK - SECTOR));
      content.fill(0, BLOCK + SECTOR, 6 * BLOCK);
      await must(client.flush());
      await until("the space is back", () => spaceOf(path) <= written - 5 * BLOCK + MIB / 4);
      // Two blocks where there was none, in the place of those that went.
      const length = lengthOf(path);
      await must(client.write(16 * MIB, content.subarray(16 * MIB)));
      await must(client.flush());
      expect(lengthOf(path)).toBe(length);
    });
    expectSame(await readThrough(tapdisk), content, "by tapdisk");
    await tapdisk.stop();
    expectSame(await readWithQemu(path), content, "by qemu");
    // Blocks 0 to 7 without the ends of 1 to 5, and the two new ones.
    expect(lengthOf(path)).toBeLessThan(16 * MIB + MIB / 4);
    expect(spaceOf(path)).toBeLessThan(10 * MIB + MIB / 4);

    await whileServed(disk, ["--io", io], (again) =>
      connected(again, (client) => must(client.request(command.trim, 0, SIZE))),
    );
    expectSame(await readWithQemu(path), contentWith(SIZE, []), "all discarded");
    expect(lengthOf(path)).toBeLessThanOrEqual(empty + 4096);
  });

  test.each([
    ["a hole", 0],
    ["a durable hole", commandFlag.fua],
    ["no hole", commandFlag.noHole],
  ])("zeros are written: %s", async (_, flags) => {
    const { disk, path } = await newDisk("dynamic");
    const content = pattern(SIZE, 2);
    content.fill(0, 8 * BLOCK);
    await whileServed(disk, ["--io", io], async (tapdisk) => {
      await connected(tapdisk, async (client) => {
        await must(client.write(0, content.subarray(0, 8 * BLOCK)));
        await must(client.flush());
        const written = spaceOf(path);
        // Within a block; whole blocks and their neighbours; blocks that are not there.
        const ranges: [number, number][] = [
          [5 * SECTOR, SECTOR],
          [BLOCK - SECTOR, 3 * BLOCK + 2 * SECTOR],
          [7 * BLOCK, 3 * BLOCK],
        ];
        for (const [offset, length] of ranges) {
          await must(client.request(command.writeZeroes, offset, length, flags));
          content.fill(0, offset, offset + length);
        }
        await must(client.flush());
        if (flags !== commandFlag.noHole)
          await until("the space is back", () => spaceOf(path) <= written - 4 * BLOCK + MIB / 4);
      });
      expectSame(await readThrough(tapdisk), content, "by tapdisk");
    });
    expectSame(await readWithQemu(path), content, "by qemu");
    // All that was written; or without the four blocks that are zeros as a whole.
    if (flags === commandFlag.noHole) expect(spaceOf(path)).toBeGreaterThanOrEqual(8 * BLOCK);
    else expect(spaceOf(path)).toBeLessThan(4 * BLOCK + MIB / 4);
  });

  test.each(["dynamic", "fixed", "raw"] as const)("any mixture ends as it should: %s", async (kind) => {
    const { disk, path } = await newDisk(kind);
    const content = contentWith(SIZE, []);
    const random = randomNumbers(3);
    for (let round = 0; round < 2; round++) {
      await whileServed(disk, ["--io", io], async (tapdisk) => {
        await connected(tapdisk, async (client) => {
          for (let step = 0; step < 60; step++) {
            const block = random(SIZE / BLOCK);
            const [first, end] = random(2) === 0 ? [0, BLOCK * (1 + random(2))] : [random(4000) * SECTOR, BLOCK];
            const offset = block * BLOCK + first;
            const length = Math.min(end - first, SIZE - offset);
            const data = Buffer.alloc(length);
            switch (random(4)) {
              case 0:
                await must(client.request(command.trim, offset, length));
                break;
              case 1:
                await must(client.request(command.writeZeroes, offset, length, random(4)));
                break;
              case 2:
                pattern(length, step).copy(data);
                await must(client.write(offset, data));
                break;
              default:
                await must(client.flush());
                continue;
            }
            data.copy(content, offset);
          }
        });
        expectSame(await readThrough(tapdisk), content, "by tapdisk");
      });
      expectSame(await contentOf(kind, path), content, "afterwards");
    }
    expect(lengthOf(path)).toBeLessThan(SIZE + MIB / 4);
  });

  test.each(["fixed", "raw"] as const)("a discard makes a hole, and the disk keeps its size: %s", async (kind) => {
    const { disk, path } = await newDisk(kind);
    const length = lengthOf(path);
    const content = pattern(SIZE, 4);
    await whileServed(disk, ["--io", io], (tapdisk) =>
      connected(tapdisk, async (client) => {
        await must(client.write(0, content));
        await must(client.flush());
        const written = spaceOf(path);
        // To the very end, where the footer of a fixed image is close.
        await must(client.request(command.trim, 4 * MIB, SIZE - 4 * MIB));
        content.fill(0, 4 * MIB);
        await must(client.flush());
        expect(spaceOf(path)).toBeLessThanOrEqual(written - 16 * MIB + MIB / 4);
      }),
    );
    expectSame(await contentOf(kind, path), content, "afterwards");
    expect(lengthOf(path)).toBe(length);
  });

  test("zeros in a child hide its parent", async () => {
    const folder = temporaryDirectory();
    const [base, leaf] = [join(folder, "base.vhd"), join(folder, "leaf.vhd")];
    const images = [
      // Some blocks are in the parent only, some in neither.
      { path: base, extents: [{ offset: 0, data: pattern(6 * BLOCK, 5) }] },
      { path: leaf, extents: scattered(4 * BLOCK, 5, 6) },
    ];
    await createWithFatTools(images, { size: SIZE, blockSize: BLOCK });
    const parent = sha256(readFileSync(base));
    const content = contentWith(SIZE, []);
    for (const { extents } of images) applyExtents(content, extents);
    const ranges: [number, number, number][] = [
      [3 * SECTOR, BLOCK, 0],
      [2 * BLOCK, BLOCK, commandFlag.noHole],
      [4 * BLOCK, BLOCK, commandFlag.fua],
      [5 * BLOCK + 7 * SECTOR, 9 * SECTOR, 0],
      [6 * BLOCK + SECTOR, 2 * BLOCK, 0],
    ];
    await whileServed(`vhd:${leaf}`, ["--io", io], async (tapdisk) => {
      await connected(tapdisk, async (client) => {
        for (const [offset, length, flags] of ranges) {
          await must(client.request(command.writeZeroes, offset, length, flags));
          content.fill(0, offset, offset + length);
        }
        await must(client.flush());
      });
      expectSame(await readThrough(tapdisk), content, "by tapdisk");
    });
    expectSame(await readWithFatTools(leaf), content, "by FATtools");
    expect(sha256(readFileSync(base))).toBe(parent);
  });

  test("a discard in a child leaves a sector as it was, or zeros", async () => {
    const folder = temporaryDirectory();
    const [base, leaf] = [join(folder, "base.vhd"), join(folder, "leaf.vhd")];
    const own = scattered(SIZE, 7, 8).map(({ offset, data }) => ({ offset, data: pattern(data.length, offset) }));
    const images = [
      { path: base, extents: [{ offset: 0, data: pattern(SIZE, 7) }] },
      { path: leaf, extents: [...own, { offset: 3 * BLOCK, data: pattern(BLOCK, 9) }] },
    ];
    await createWithFatTools(images, { size: SIZE, blockSize: BLOCK });
    const parent = sha256(readFileSync(base));
    const content = contentWith(SIZE, []);
    for (const { extents } of images) applyExtents(content, extents);
    const [from, to] = [BLOCK + 3 * SECTOR, 6 * BLOCK];
    const read = await whileServed(`vhd:${leaf}`, ["--io", io], async (tapdisk) => {
      await connected(tapdisk, async (client) => {
        const written = spaceOf(leaf);
        await must(client.request(command.trim, from, to - from));
        await must(client.flush());
        await until("the space is back", () => spaceOf(leaf) <= written - BLOCK);
      });
      return await readThrough(tapdisk);
    });
    const zeros = Buffer.alloc(SECTOR);
    let erased = 0;
    for (let at = from; at < to; at += SECTOR) {
      if (read.subarray(at, at + SECTOR).equals(zeros)) {
        content.fill(0, at, at + SECTOR);
        erased++;
      }
    }
    // At least the block that the child has as a whole.
    expect(erased).toBeGreaterThanOrEqual(BLOCK / SECTOR);
    expectSame(read, content, "by tapdisk");
    expectSame(await readWithFatTools(leaf), content, "by FATtools");
    expect(sha256(readFileSync(base))).toBe(parent);
  });
});

async function mount(device: string, folder: string): Promise<boolean> {
  mkdirSync(folder);
  const { status } = await outcomeOf("mount", [device, folder]);
  onTestFinished(async () => {
    await outcomeOf("umount", [folder]);
  });
  return status === 0;
}

const totalsSchema = z.array(z.object({ size: z.int(), type: z.int() }));

/** Bytes that are no holes, as nbdinfo sees it. */
async function dataOf({ uri }: Tapdisk): Promise<number> {
  const totals = totalsSchema.parse(JSON.parse(await run("nbdinfo", ["--map", "--totals", "--json", uri])));
  return totals.find(({ type }) => type === 0)?.size ?? 0;
}

test("fstrim in a mounted file system gives space back", async ({ skip }) => {
  const { disk, path } = await newDisk("dynamic");
  const folder = temporaryDirectory();
  const tapdisk = await serve(disk);
  const trimmed = await (async () => {
    mkdirSync(join(folder, "nbd"));
    const fuse = new RunningProgram("nbdfuse", [join(folder, "nbd"), tapdisk.uri]);
    const file = join(folder, "nbd/nbd");
    onTestFinished(async () => {
      await outcomeOf("fusermount3", ["-u", "-q", join(folder, "nbd")]);
    });
    await until("nbdfuse shows the disk, or can't", () => existsSync(file) || fuse.stderr !== "");
    const device = existsSync(file) ? await loopDevice(file) : undefined;
    if (device === undefined) return undefined;
    await run("mkfs.ext4", ["-q", "-E", "nodiscard", device]);
    const root = join(folder, "root");
    if (!(await mount(device, root))) return undefined;
    writeFileSync(join(root, "large"), pattern(8 * MIB, 10));
    writeFileSync(join(root, "small"), pattern(SECTOR, 11));
    await run("sync", ["-f", root]);
    const written = spaceOf(path);
    expect(written).toBeGreaterThan(8 * MIB);
    const before = await dataOf(tapdisk);
    await run("rm", [join(root, "large")]);
    await run("sync", ["-f", root]);
    await run("fstrim", [root]);
    await run("sync", ["-f", root]);
    await run("umount", [root]);
    await run("losetup", ["-d", device]);
    await run("fusermount3", ["-u", join(folder, "nbd")]);
    await fuse.outcome(10);
    return { space: written - spaceOf(path), before, after: await dataOf(tapdisk) };
  })();
  await tapdisk.stop();
  const { space, before, after } = trimmed ?? skip("mounting is not permitted here");
  expect(space).toBeGreaterThan(7 * MIB);
  // The map shows it too, as far as whole blocks went.
  expect(before).toBeGreaterThan(8 * MIB);
  expect(after).toBeLessThanOrEqual(before - 3 * BLOCK);
  expect(after).toBeGreaterThan(0);
  const raw = join(folder, "disk.raw");
  writeFileSync(raw, await readWithQemu(path));
  await run("e2fsck", ["-fn", raw]);
  const target = join(folder, "small");
  await run("debugfs", ["-R", `dump /small ${target}`, raw]);
  expectSame(readFileSync(target), pattern(SECTOR, 11), "the file that stayed");
});
