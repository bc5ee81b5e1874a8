/** VHDs as npm `vhd-lib` (Xen Orchestra's) makes, reads and writes them. */

import { closeSync, createWriteStream, fstatSync, openSync, readSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { pipeline } from "node:stream/promises";
import type { Fragment, Handler } from "vhd-lib";

// It is CommonJS with an `__esModule` mark, which loaders disagree about.
const vhdLib: typeof import("vhd-lib") = createRequire(import.meta.url)("vhd-lib");

const handler: Handler = {
  openFile: async (path, flags) => openSync(path, flags),
  closeFile: async (file) => closeSync(file),
  getSize: async (file) => fstatSync(file).size,
  read: async (file, buffer, position) => ({ bytesRead: readSync(file, buffer, { position }), buffer }),
  write: async (file, buffer, position) => {
    writeSync(file, buffer, 0, buffer.length, position);
  },
};

/** Makes a dynamic VHD of the given fragments, all of the same size. vhd-lib rounds the disk's size up to a geometry. */
export async function makeDynamic(path: string, diskSize: number, fragments: readonly Fragment[]): Promise<void> {
  const [first] = fragments;
  if (first === undefined) throw new Error("vhd-lib makes no disk without data");
  const addresses = fragments.map((fragment) => fragment.logicalAddressBytes);
  const iterator = (async function* () {
    yield* fragments;
  })();
  const stream = await vhdLib.createReadableSparseStream(diskSize, first.data.length, addresses, iterator);
  await pipeline(stream, createWriteStream(path));
}

/** Makes a fixed VHD. */
export async function makeFixed(path: string, diskSize: number, fragments: readonly Fragment[]): Promise<void> {
  const rest = [...fragments];
  const stream = vhdLib.createReadableRawStream(diskSize, { next: async () => rest.shift() ?? null });
  await pipeline(stream, createWriteStream(path));
}

/** Checks both footers and the header as vhd-lib does, and reads the whole disk. Dynamic VHDs only. */
export async function readWithVhdLib(path: string): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of vhdLib.createContentStream(handler, path)) {
    parts.push(part);
  }
  return Buffer.concat(parts);
}

/** Writes into a dynamic VHD. */
export async function writeWithVhdLib(path: string, sector: number, data: Buffer): Promise<void> {
  const file = openSync(path, "r+");
  try {
    const vhd = new vhdLib.default(handler, file);
    await vhd.readHeaderAndFooter();
    await vhd.readBlockAllocationTable();
    await vhd.writeData(sector, data);
  } finally {
    closeSync(file);
  }
}

/** Merges a child into its parent. Right only where the child's blocks are full. */
export async function mergeWithVhdLib(parent: string, child: string): Promise<void> {
  await vhdLib.mergeVhd(handler, parent, handler, child);
}

/** Checks header and footers of an image. */
export async function checkChainWithVhdLib(path: string): Promise<void> {
  // It hands over the path where it usually has an open file.
  const file = openSync(path, "r");
  const byPath: Pick<Handler<string>, "getSize" | "read"> = {
    getSize: async () => handler.getSize(file),
    read: async (_path, buffer, position) => handler.read(file, buffer, position),
  };
  try {
    await vhdLib.checkVhdChain(byPath, path);
  } finally {
    closeSync(file);
  }
}
