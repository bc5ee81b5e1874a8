/** What is measured once and not against others: how soon a disk answers, and what it costs to have one. */

import { once } from "node:events";
import { rm } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { emptyImage } from "./images.ts";
import { Program, residentBytes } from "./processes.ts";
import type { Probe } from "./results.ts";

const TIMES = 7;
const GIB = 2 ** 30;

/** What a probe measures, and what must be reached. */
export const probeKinds = [
  { name: "first-answer", title: "from exec to the first answered request over NBD", unit: "ms", most: 150 },
  { name: "resident", title: "resident memory of a process with one disk of 10 GiB", unit: "MiB", most: undefined },
] as const;

/** Measures ours. Images go into `folder`. */
export async function probe(folder: string, commands: string): Promise<Probe[]> {
  const image = join(folder, "probe.vhd");
  await emptyImage(image, "vhd", 10 * GIB);
  const times: number[] = [];
  const memory: number[] = [];
  for (let time = 0; time < TIMES; time++) {
    const socketPath = join(folder, `probe.${time}`);
    const start = performance.now();
    const server = new Program({
      program: join(commands, "tapdisk"),
      args: ["serve", `vhd:${image}`, "--nbd", `unix:${socketPath}`],
    });
    while (!server.stdout.includes("\n")) {
      if (!server.alive) throw server.error("did not start");
      await sleep(1);
    }
    await readFirstSectors(socketPath);
    times.push(performance.now() - start);
    memory.push(server.pid === undefined ? Number.NaN : residentBytes(server.pid) / 2 ** 20);
    await server.stop("SIGTERM");
  }
  await rm(image);
  return [
    { name: "first-answer", values: times },
    { name: "resident", values: memory },
  ];
}

/** NBD at its shortest: the default export by NBD_OPT_EXPORT_NAME, then one read of 4 KiB. */
async function readFirstSectors(path: string): Promise<void> {
  const socket = connect(path);
  await once(socket, "connect");
  await take(socket, 18);
  const options = Buffer.alloc(20);
  options.writeUInt32BE(3, 0);
  options.write("IHAVEOPT", 4, "latin1");
  options.writeUInt32BE(1, 12);
  socket.write(options);
  await take(socket, 10);
  const read = Buffer.alloc(28);
  read.writeUInt32BE(0x25609513, 0);
  read.writeUInt32BE(4096, 24);
  socket.write(read);
  await take(socket, 16 + 4096);
  socket.destroy();
}

async function take(socket: Socket, bytes: number): Promise<void> {
  while (socket.read(bytes) === null) {
    await once(socket, "readable");
  }
}
