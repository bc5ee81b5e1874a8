/** How soon a disk answers. */

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { chainFiles } from "../chains.ts";
import { emptyImage } from "../images.ts";
import { makeLargestChain } from "../large-images.ts";
import { CHAIN_LENGTH } from "../probes.ts";
import { Program, residentBytes } from "../processes.ts";
import type { Probe } from "../results.ts";
import { readFirstSectors } from "../visits.ts";

const TIMES = 7;
const GIB = 2 ** 30;

/** From exec to the first answer, and the memory that it takes. Images go into `folder`. */
export async function probeStarting(folder: string, commands: string): Promise<Probe[]> {
  const image = join(folder, "start.vhd");
  await emptyImage(image, "vhd", 10 * GIB);
  const starts = await startOften(image, folder, commands);
  await rm(image);
  return [
    { name: "first-answer", values: starts.map(({ milliseconds }) => milliseconds) },
    { name: "resident", values: starts.map(({ resident }) => resident / 2 ** 20) },
  ];
}

/** From exec to the first answer of the longest chain of the largest disks. */
export async function probeChain(folder: string, commands: string): Promise<Probe[]> {
  const leaf = join(folder, "long.vhd");
  makeLargestChain(leaf, CHAIN_LENGTH);
  const starts = await startOften(leaf, folder, commands);
  await Promise.all(chainFiles(leaf, CHAIN_LENGTH).map((file) => rm(file)));
  return [{ name: "chain-answer", values: starts.map(({ milliseconds }) => milliseconds) }];
}

interface Start {
  readonly milliseconds: number;
  /** Bytes. */
  readonly resident: number;
}

async function startOften(image: string, folder: string, commands: string): Promise<Start[]> {
  const starts: Start[] = [];
  for (let time = 0; time < TIMES; time++) {
    const socket = join(folder, `start.${time}`);
    const start = performance.now();
    const server = new Program({
      program: join(commands, "tapdisk"),
      args: ["serve", `vhd:${image}`, "--nbd", `unix:${socket}`],
    });
    try {
      while (!server.stdout.includes("\n")) {
        if (!server.alive) throw server.error("did not start");
        await sleep(1);
      }
      await readFirstSectors(socket);
      const milliseconds = performance.now() - start;
      starts.push({ milliseconds, resident: server.pid === undefined ? Number.NaN : residentBytes(server.pid) });
    } finally {
      await server.stop("SIGTERM");
    }
  }
  return starts;
}
