import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { interruptible } from "../tools/cli/interrupt.ts";
import { printable } from "../tools/cli/output.ts";
import { DiskThread } from "./disk-thread.ts";
import { type Address, formatUri } from "./listen.ts";
import type { DiskOptions } from "./messages.ts";
import type { NbdExport } from "./nbd-handshake.ts";
import { NbdServer } from "./nbd-server.ts";
import { type PortModule, portModule } from "./port.ts";
import { RingServer } from "./ring-server.ts";

/** A disk to serve, and where. Without any address it is NBD on a Unix socket in a new folder. */
export interface ServedDisk {
  readonly disk: DiskOptions;
  readonly nbd: Address | undefined;
  readonly ring: Address | undefined;
}

/** The largest payload is what clients expect when nothing is said, and what the port's buffers are made for. */
const BLOCK_SIZE = { minimum: 512, preferred: 4096, maximum: 32 << 20 } as const;

/**
 * Serves disks, each in a thread of its own, until SIGTERM or SIGINT or the end of one of them, then closes all. Prints a
 * URI for each front end, in the order of the disks, when all are ready.
 * @throws what kept a disk from being opened, served or closed; the first of it.
 */
export async function serve(disks: readonly ServedDisk[]): Promise<void> {
  const { promise: stopped, resolve: stop } = Promise.withResolvers<void>();
  // Patient: a second signal must not end the program while it makes things durable.
  await interruptible(stop, () => serveUntil(stopped, disks), true);
}

async function serveUntil(stopped: Promise<void>, disks: readonly ServedDisk[]): Promise<void> {
  const port = portModule();
  const opening = await Promise.allSettled(disks.map((served) => openDisk(port, served)));
  const open = opening.filter((result) => result.status === "fulfilled").map(({ value }) => value);
  try {
    for (const result of opening) {
      if (result.status === "rejected") {
        throw result.reason;
      }
    }
    const uris: string[] = [];
    for (const { servers } of open) {
      uris.push(...(await servers.open()));
    }
    process.stdout.write(`${uris.join("\n")}\n`);
    await Promise.race([stopped, ...open.map(({ thread }) => thread.ended)]);
  } finally {
    await closeAll(open);
  }
}

interface OpenDisk {
  readonly thread: DiskThread;
  readonly servers: Servers;
}

async function openDisk(port: PortModule, served: ServedDisk): Promise<OpenDisk> {
  const thread = await DiskThread.open(port, served.disk);
  for (const warning of thread.disk.warnings) {
    say(`warning: ${warning}`);
  }
  return { thread, servers: new Servers(port, thread, served) };
}

/** Lets no new clients in, then closes the disks at the same time, whatever becomes of the others. */
async function closeAll(open: readonly OpenDisk[]): Promise<void> {
  for (const { servers } of open) {
    servers.close();
  }
  const closing = await Promise.allSettled(
    open.map(({ thread, servers }) => thread.close().finally(() => servers.removeFolder())),
  );
  for (const result of closing) {
    if (result.status === "rejected") {
      throw result.reason;
    }
  }
}

/** The servers of one disk. */
class Servers {
  readonly #port: PortModule;
  readonly #thread: DiskThread;
  readonly #served: ServedDisk;
  readonly #open: { close(): void }[] = [];
  #folder: string | undefined;

  constructor(port: PortModule, thread: DiskThread, served: ServedDisk) {
    this.#port = port;
    this.#thread = thread;
    this.#served = served;
  }

  /** Opens those that are wanted. Returns their URIs. */
  async open(): Promise<string[]> {
    const { nbd, ring, disk } = this.#served;
    const uris: string[] = [];
    if (nbd !== undefined || ring === undefined) {
      const server = new NbdServer(this.#port, this.#thread, nbdExport(disk, this.#thread), say);
      this.#open.push(server);
      uris.push(formatUri("nbd", await server.listen(nbd ?? (await this.#privateAddress()))));
    }
    if (ring !== undefined) {
      const thread = this.#thread;
      const offered = {
        // It may have grown when the next client comes.
        get sectors() {
          return thread.disk.sectors;
        },
        readOnly: disk.readOnly,
      };
      const server = new RingServer(this.#port, thread, offered, say);
      this.#open.push(server);
      uris.push(formatUri("ring", await server.listen(ring)));
    }
    return uris;
  }

  /** Lets no new clients in. */
  close(): void {
    for (const server of this.#open) {
      server.close();
    }
  }

  /** Removes the folder of the socket that nobody named. */
  async removeFolder(): Promise<void> {
    if (this.#folder !== undefined) {
      await rm(this.#folder, { recursive: true, force: true });
    }
  }

  /** A Unix socket that only this user can reach. */
  async #privateAddress(): Promise<Address> {
    this.#folder = await mkdtemp(join(tmpdir(), "tapdisk-"));
    return { kind: "unix", path: join(this.#folder, "nbd") };
  }
}

function say(message: string): void {
  process.stderr.write(`tapdisk: ${printable(message)}\n`);
}

/** What a new client is offered: the disk as it is then, since it may grow. */
export function nbdExport(options: DiskOptions, thread: Pick<DiskThread, "disk">): NbdExport {
  const [leaf] = options.stack;
  return {
    name: basename(leaf.name),
    get description() {
      return `${thread.disk.type} disk of ${thread.disk.sizeBytes} bytes in ${leaf.name}`;
    },
    get size() {
      return thread.disk.sizeBytes;
    },
    readOnly: options.readOnly,
    trim: true,
    writeZeroes: true,
    fastZero: true,
    blockSize: BLOCK_SIZE,
  };
}
