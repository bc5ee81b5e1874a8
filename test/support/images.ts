/** Images as qemu makes them, and what independent programs read from images. */

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import { NbdClient } from "./nbd-client.ts";
import { outcomeOf, RunningProgram, run, temporaryDirectory, until } from "./run.ts";
import type { Tapdisk } from "./tapdisk.ts";

export interface QemuImage {
  readonly subformat: "dynamic" | "fixed";
  /** Without, qemu rounds the size up to what a geometry of cylinders, heads and sectors can say. */
  readonly forceSize?: boolean;
}

function qemuOptions({ subformat, forceSize = false }: QemuImage): string {
  return `subformat=${subformat},force_size=${forceSize ? "on" : "off"}`;
}

/** An empty VHD of qemu's. */
export async function createWithQemu(path: string, mebibytes: number, kind: QemuImage): Promise<void> {
  await run("qemu-img", ["create", "-q", "-f", "vpc", "-o", qemuOptions(kind), path, `${mebibytes}M`]);
}

/** A VHD of qemu's with the given content. */
export async function makeWithQemu(path: string, content: Uint8Array, kind: QemuImage): Promise<void> {
  const raw = `${path}.raw`;
  writeFileSync(raw, content);
  await run("qemu-img", ["convert", "-q", "-f", "raw", "-O", "vpc", "-o", qemuOptions(kind), raw, path]);
}

/** The whole disk, as qemu sees it. */
export async function readWithQemu(path: string): Promise<Buffer> {
  const raw = join(temporaryDirectory(), "disk.raw");
  await run("qemu-img", ["convert", "-q", "-f", "vpc", "-O", "raw", path, raw]);
  return readFileSync(raw);
}

/** Writes with qemu's own driver. */
export async function writeWithQemu(path: string, offset: number, data: Uint8Array): Promise<void> {
  const source = join(temporaryDirectory(), "data");
  writeFileSync(source, data);
  await run("qemu-io", ["-f", "vpc", "-c", `write -q -s ${source} ${offset} ${data.length}`, path]);
}

/** Whether libvhdi can show a disk here: it needs FUSE. */
export const mayMount: boolean = existsSync("/dev/fuse");

/** The whole disk, as libvhdi sees it. */
export async function readWithLibvhdi(path: string): Promise<Buffer> {
  const mountPoint = join(temporaryDirectory(), "vhdi");
  mkdirSync(mountPoint);
  // Verbose keeps it in the foreground.
  const mount = new RunningProgram("vhdimount", ["-v", path, mountPoint]);
  onTestFinished(async () => {
    await outcomeOf("fusermount3", ["-u", "-q", mountPoint]);
  });
  const disk = join(mountPoint, "vhdi1");
  await until("vhdimount shows the disk", () => existsSync(disk));
  const content = readFileSync(disk);
  await run("fusermount3", ["-u", mountPoint]);
  await mount.outcome(10);
  return content;
}

/** The whole disk, as tapdisk serves it to nbdcopy, which reads what is a hole too. */
export async function readThrough({ uri }: Tapdisk): Promise<Buffer> {
  const raw = join(temporaryDirectory(), "disk.raw");
  await run("nbdcopy", ["--no-extents", uri, raw]);
  return readFileSync(raw);
}

/** Something that is to be on a disk. */
export interface Extent {
  readonly offset: number;
  readonly data: Uint8Array;
}

/** Writes through tapdisk, all at once and in no order, and flushes. */
export async function writeThrough({ socket }: Tapdisk, extents: readonly Extent[]): Promise<void> {
  const client = await NbdClient.connect(socket);
  const replies = await Promise.all(extents.map(({ offset, data }) => client.write(offset, data)));
  replies.push(await client.flush());
  await client.close();
  const failed = replies.find(({ error }) => error !== 0);
  if (failed !== undefined) throw new Error(`a write failed: ${failed.error}`);
}

/** A content with these extents, and zeros elsewhere. */
export function contentWith(size: number, extents: readonly Extent[]): Buffer {
  const content = Buffer.alloc(size);
  applyExtents(content, extents);
  return content;
}

export function applyExtents(content: Buffer, extents: readonly Extent[]): void {
  for (const { offset, data } of extents) content.set(data, offset);
}
