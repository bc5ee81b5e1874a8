// NBD clients that other people wrote do their work on a disk and find it right; several of them at once too.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { expectSame, MIB, pattern, sha256 } from "./support/data.ts";
import { createWithQemu, readWithQemu } from "./support/images.ts";
import { outcomeOf, run, temporaryDirectory } from "./support/run.ts";
import { nbdLoad, serve } from "./support/tapdisk.ts";

const SIZE = 64 * MIB;

const fioSchema = z.object({
  jobs: z.array(
    z.object({
      error: z.int(),
      read: z.object({ total_ios: z.int(), io_bytes: z.int() }),
      write: z.object({ total_ios: z.int(), io_bytes: z.int() }),
    }),
  ),
});

/** Runs fio with verification. Yields the bytes that it wrote; each of them was read back and right. */
async function fio(uri: string, ...options: string[]): Promise<number> {
  const common = ["--name=job", "--ioengine=nbd", `--uri=${uri}`, "--verify=crc32c", "--verify_fatal=1"];
  const output = await run(
    "fio",
    [...common, "--verify_state_save=0", "--group_reporting=0", "--output-format=json", ...options],
    { cwd: temporaryDirectory(), seconds: 60 },
  );
  // fio's nbd engine says a line before the JSON.
  const { jobs } = fioSchema.parse(JSON.parse(output.slice(output.indexOf("{"))));
  let written = 0;
  for (const job of jobs) {
    expect(job.error).toBe(0);
    expect(job.read.io_bytes).toBeGreaterThanOrEqual(job.write.io_bytes);
    written += job.write.io_bytes;
  }
  return written;
}

const mixed = "--bssplit=512/20:1k/10:4k/30:12k/10:64k/15:256k/10:1M/5";

/** The ways in which operations reach the file. */
const ways = [
  { way: "io_uring", options: ["--io", "uring"] },
  { way: "threads", options: ["--io", "threads"] },
  { way: "io_uring, direct", options: ["--io", "uring", "--direct"] },
  { way: "threads, direct", options: ["--io", "threads", "--direct"] },
];

describe.each(ways)("on a disk served by $way", ({ options }) => {
  test("fio verifies mixed block sizes at depth 32, then again from the file", async () => {
    const path = join(temporaryDirectory(), "disk.vhd");
    await createWithQemu(path, SIZE / MIB, { subformat: "dynamic", forceSize: true });
    const job = ["--rw=randwrite", mixed, "--iodepth=32", `--size=${SIZE}`, "--randseed=11"];
    const first = await serve(`vhd:${path}`, ...options);
    expect(await fio(first.uri, ...job)).toBe(SIZE);
    await first.stop();
    const second = await serve(`vhd:${path}`, ...options);
    await fio(second.uri, ...job, "--verify_only=1");
    await second.stop();
  });

  test("fio reads and writes in turn, and flushes now and then", async () => {
    const path = join(temporaryDirectory(), "disk.vhd");
    await createWithQemu(path, SIZE / MIB, { subformat: "dynamic", forceSize: true });
    const tapdisk = await serve(`vhd:${path}`, ...options);
    await fio(tapdisk.uri, "--rw=randrw", mixed, "--iodepth=32", "--size=16M", "--fsync=16", "--randseed=12");
    await tapdisk.stop();
  });

  test("fio verifies on 16 connections at once", async () => {
    const path = join(temporaryDirectory(), "disk.vhd");
    await createWithQemu(path, SIZE / MIB, { subformat: "dynamic", forceSize: true });
    const tapdisk = await serve(`vhd:${path}`, ...options);
    // Parts that are no whole number of blocks, so that neighbours write into the same ones.
    const parts = ["--numjobs=16", "--size=3M", "--offset_increment=3M"];
    expect(await fio(tapdisk.uri, "--rw=randwrite", mixed, "--iodepth=8", ...parts)).toBe(48 * MIB);
    await tapdisk.stop();
  });

  test("nbdcopy copies a disk in and out on 16 connections", async () => {
    const directory = temporaryDirectory();
    const [path, source, copy] = [join(directory, "disk.vhd"), join(directory, "source"), join(directory, "copy")];
    await createWithQemu(path, SIZE / MIB, { subformat: "dynamic", forceSize: true });
    const data = pattern(SIZE, 21);
    data.fill(0, 5 * MIB, 11 * MIB);
    writeFileSync(source, data);
    const tapdisk = await serve(`vhd:${path}`, ...options);
    const connections = ["--connections=16", "--threads=4", "--requests=64"];
    await run("nbdcopy", [...connections, "--flush", source, tapdisk.uri]);
    await run("nbdcopy", [...connections, tapdisk.uri, copy]);
    await tapdisk.stop();
    expectSame(readFileSync(copy), data, "through nbdcopy");
    expectSame(await readWithQemu(path), data, "in the file");
  });
});

test("qemu-io finds the patterns that it wrote, on either side of blocks and sectors", async () => {
  const path = join(temporaryDirectory(), "disk.vhd");
  await createWithQemu(path, SIZE / MIB, { subformat: "dynamic", forceSize: true });
  const tapdisk = await serve(`vhd:${path}`);
  const qemuIo = (...commands: string[]) =>
    outcomeOf("qemu-io", ["-f", "raw", ...commands.flatMap((command) => ["-c", command]), tapdisk.uri]);
  const good = await qemuIo(
    "write -P 0x11 0 512",
    "write -P 0x22 2096640 1024",
    "write -f -P 0x33 4M 4M",
    "aio_write -P 0x44 30M 3M",
    "aio_write -P 0x55 40000000 300000", // not aligned to sectors: qemu reads, changes and writes
    "aio_flush",
    "flush",
    "read -P 0x11 0 512",
    "read -P 0 512 1M",
    "read -P 0x22 2096640 1024",
    "read -P 0x33 4M 4M",
    "read -P 0x44 30M 3M",
    "read -P 0x55 40000000 300000",
    "read -P 0 60M 4M",
  );
  expect(good).toMatchObject({ status: 0, stdout: expect.not.stringContaining("verification failed") });
  // This is how it would say that something is wrong.
  const bad = await qemuIo("read -P 0x12 0 512");
  expect(bad.stdout).toContain("verification failed");
  await tapdisk.stop();
});

const infoSchema = z.object({
  exports: z.tuple([z.looseObject({ "export-name": z.string(), "export-size": z.int() })]),
});

test("nbdinfo shows a read-only disk as such, and nobody can write to it", async () => {
  const path = join(temporaryDirectory(), "the disk.vhd");
  await createWithQemu(path, SIZE / MIB, { subformat: "fixed", forceSize: true });
  const before = sha256(readFileSync(path));
  const tapdisk = await serve(`vhd:${path}`, "--read-only");
  const info = infoSchema.parse(JSON.parse(await run("nbdinfo", ["--json", "--list", "--no-content", tapdisk.uri])));
  expect(info.exports[0]).toMatchObject({
    "export-name": "the disk.vhd",
    "export-size": SIZE,
    is_read_only: true,
    can_flush: true,
    can_multi_conn: true,
    can_trim: false,
    can_zero: false,
    block_size_minimum: 512,
  });
  const source = join(temporaryDirectory(), "source");
  writeFileSync(source, pattern(MIB, 1));
  expect((await outcomeOf("nbdcopy", [source, tapdisk.uri])).status).not.toBe(0);
  expect((await outcomeOf("qemu-io", ["-f", "raw", "-c", "write 0 4k", tapdisk.uri])).status).not.toBe(0);
  await tapdisk.stop();
  expect(sha256(readFileSync(path))).toBe(before);
});

const loadSchema = z.object({ rw: z.string(), bs: z.int(), ios: z.int().min(1), span: z.int() });

test.each(ways)("nbd-load writes, reads and trims a disk served by $way", async ({ options }) => {
  const path = join(temporaryDirectory(), "disk.vhd");
  await createWithQemu(path, SIZE / MIB, { subformat: "dynamic", forceSize: true });
  const tapdisk = await serve(`vhd:${path}`, ...options);
  const load = async (rw: string, ...more: string[]) => {
    const args = ["--socket", tapdisk.socket, "--rw", rw, "--bs", "65536", "--seconds", "0.3", ...more];
    const report = loadSchema.parse(JSON.parse(await run(nbdLoad, args, { seconds: 60 })));
    expect(report).toMatchObject({ rw, bs: 65536, span: SIZE });
    return report.ios;
  };
  await load("write", "--depth", "8");
  await load("randwrite", "--depth", "4", "--flush-each");
  await load("randread", "--depth", "32", "--poll-us", "50");
  expect((await readServed(tapdisk.uri)).some((byte) => byte !== 0)).toBe(true);
  expect(await load("trim", "--depth", "4")).toBe(SIZE / 65536);
  expect((await readServed(tapdisk.uri)).every((byte) => byte === 0)).toBe(true);
  await tapdisk.stop();
});

/** All of a disk, by nbdcopy. */
async function readServed(uri: string): Promise<Buffer> {
  const path = join(temporaryDirectory(), "content");
  await run("nbdcopy", [uri, path]);
  return readFileSync(path);
}
