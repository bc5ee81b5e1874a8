import { closeSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { SECTOR } from "../engine/records.ts";
import type { DiskThread } from "./disk-thread.ts";
import { RefusedError } from "./disk-thread.ts";
import { errnoOf } from "./errors.ts";
import { type Address, listen } from "./listen.ts";
import type { PortModule } from "./port.ts";
import { socketFd } from "./socket-handle.ts";

const ANSWER_MAGIC = "TAPRING1";
const ANSWER_BYTES = 32;
const FLAG_READ_ONLY = 1;
const MAX_CONNECTIONS = 16;

/** The disk as its ring clients are told of it. */
export interface RingDisk {
  readonly sectors: number;
  readonly readOnly: boolean;
}

/**
 * Accepts clients that bring a ring of their own: over a Unix socket they send its memory and two event descriptors. The
 * connection then stays open as a sign of life; closing it detaches the ring.
 */
export class RingServer {
  readonly #server: Server;
  readonly #port: PortModule;
  readonly #thread: DiskThread;
  readonly #disk: RingDisk;
  readonly #onWarning: (message: string) => void;
  /** Clients whose ring is not attached yet. */
  readonly #arriving = new Set<Socket>();

  /** `onWarning` gets what went wrong with clients through no fault of theirs. */
  constructor(port: PortModule, thread: DiskThread, disk: RingDisk, onWarning: (message: string) => void) {
    this.#port = port;
    this.#thread = thread;
    this.#disk = disk;
    this.#onWarning = onWarning;
    // Node would drop the descriptors that come with the first bytes.
    this.#server = createServer({ pauseOnConnect: true }, (socket) => {
      void this.#serve(socket);
    });
    this.#server.maxConnections = MAX_CONNECTIONS;
  }

  /** Starts to accept clients. */
  listen(address: Address): Promise<Address> {
    return listen(this.#server, address, this.#onWarning);
  }

  /** Stops accepting, and drops clients that have not brought their ring yet. Attached rings are the data plane's to end. */
  close(): void {
    this.#server.close();
    for (const socket of this.#arriving) {
      socket.destroy();
    }
  }

  async #serve(socket: Socket): Promise<void> {
    this.#arriving.add(socket);
    const gone = new Promise<void>((resolve) => socket.once("close", () => resolve()));
    socket.on("error", () => {});
    try {
      const frontEnd = await this.#attach(socket);
      this.#arriving.delete(socket);
      socket.write(ringAnswer(0, this.#disk));
      // Nothing more is expected; reading notices the end.
      socket.resume();
      await gone;
      this.#thread.detach(frontEnd);
    } catch (error) {
      const status = error instanceof RefusedError ? error.errno : errnoOf(error);
      socket.end(ringAnswer(status, this.#disk));
      socket.resume();
    } finally {
      this.#arriving.delete(socket);
    }
  }

  async #attach(socket: Socket): Promise<number> {
    // A duplicate, so that it stays what it is even if Node closes the socket in the meantime.
    const fd = this.#port.duplicateFd(socketFd(socket));
    try {
      const ring = await this.#port.receiveRing(fd);
      return await this.#thread.attachRing(ring, () => socket.destroy());
    } finally {
      closeSync(fd);
    }
  }
}

/** What a client gets for its ring: 0 or a positive errno value, and the disk. */
export function ringAnswer(status: number, disk: RingDisk): Buffer {
  const bytes = Buffer.alloc(ANSWER_BYTES);
  bytes.write(ANSWER_MAGIC, "latin1");
  bytes.writeUInt32LE(status, 8);
  bytes.writeUInt32LE(SECTOR, 12);
  bytes.writeBigUInt64LE(BigInt(disk.sectors), 16);
  bytes.writeUInt32LE(disk.readOnly ? FLAG_READ_ONLY : 0, 24);
  return bytes;
}
