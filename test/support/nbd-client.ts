/**
 * A client of the NBD protocol that does what it is told, also what no honest client does; independent of the server's
 * code. Requests may be in flight in any number; each resolves when its reply is complete.
 * The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */

import { once } from "node:events";
import { connect, type Socket } from "node:net";

export const command = {
  read: 0,
  write: 1,
  disc: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const;
export const commandFlag = { fua: 1, noHole: 2, df: 4, reqOne: 8, fastZero: 16 } as const;
/** The protocol's error numbers. */
export const nbdError = { EPERM: 1, EIO: 5, ENOMEM: 12, EINVAL: 22, ENOSPC: 28, EOVERFLOW: 75, ENOTSUP: 95 } as const;

const OPTION_MAGIC = 0x49484156454f5054n;
const REQUEST_MAGIC = 0x25609513;
const SIMPLE_REPLY_MAGIC = 0x67446698;
const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
const option = { go: 7, structuredReply: 8, setMetaContext: 10 } as const;
const chunk = { none: 0, data: 1, hole: 2, blockStatus: 5, error: 0x8001, errorOffset: 0x8002 } as const;
const DONE = 1;

/** Neighbouring bytes with the same block status. */
export interface StatusExtent {
  readonly length: number;
  readonly flags: number;
}

/** What a request came to: an error number (0 is good), the data of a read, and the extents of a block status request. */
export interface Reply {
  readonly error: number;
  readonly data: Buffer;
  readonly extents: readonly StatusExtent[];
}

interface Pending {
  readonly data: Buffer;
  readonly extents: StatusExtent[];
  readonly offset: bigint;
  error: number;
  readonly resolve: (reply: Reply) => void;
  readonly reject: (error: Error) => void;
}

/** The connection went away before a reply came. */
export class Disconnected extends Error {
  override readonly name = "Disconnected";
}

/** Reads a stream in pieces of a wanted length. */
class Reader {
  readonly socket: Socket;
  #chunks: Buffer[] = [];
  #length = 0;
  #ended = false;
  #wake: () => void = () => {};

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (bytes: Buffer) => {
      this.#chunks.push(bytes);
      this.#length += bytes.length;
      this.#wake();
    });
    const end = () => {
      this.#ended = true;
      this.#wake();
    };
    socket.on("close", end).on("end", end).on("error", end);
  }

  async take(length: number): Promise<Buffer> {
    while (this.#length < length) {
      if (this.#ended) throw new Disconnected("the server closed the connection");
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const [first = Buffer.alloc(0)] = this.#chunks;
    const all = this.#chunks.length <= 1 ? first : Buffer.concat(this.#chunks);
    const rest = all.subarray(length);
    this.#chunks = rest.length === 0 ? [] : [rest];
    this.#length = rest.length;
    return all.subarray(0, length);
  }
}

export class NbdClient {
  readonly size: number;
  readonly flags: number;
  readonly socket: Socket;
  readonly #reader: Reader;
  readonly #pending = new Map<bigint, Pending>();
  #cookie = 0n;

  private constructor(reader: Reader, size: number, flags: number) {
    this.#reader = reader;
    this.socket = reader.socket;
    this.size = size;
    this.flags = flags;
    this.#receive().catch((error: Error) => {
      for (const pending of this.#pending.values()) pending.reject(error);
      this.#pending.clear();
      this.socket.destroy();
    });
  }

  /** Connects and shakes hands; chooses the metadata context `base:allocation` where told to. */
  static async connect(
    path: string,
    options: { structuredReplies?: boolean; blockStatus?: boolean } = {},
  ): Promise<NbdClient> {
    const socket = connect(path);
    await once(socket, "connect");
    const reader = new Reader(socket);
    const greeting = await reader.take(18);
    if (greeting.toString("latin1", 0, 16) !== "NBDMAGICIHAVEOPT") throw new Error("no NBD server");
    const flags = Buffer.alloc(4);
    flags.writeUInt32BE(3); // fixed newstyle, no zeroes
    socket.write(flags);
    if (options.structuredReplies ?? true) {
      socket.write(optionBytes(option.structuredReply, Buffer.alloc(0)));
      await optionReply(reader, option.structuredReply);
    }
    if (options.blockStatus) {
      const context = "base:allocation";
      // The empty name, and one query.
      const query = Buffer.concat([
        Buffer.from([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, context.length]),
        Buffer.from(context),
      ]);
      socket.write(optionBytes(option.setMetaContext, query));
      const { type, data } = await optionReply(reader, option.setMetaContext);
      if (type !== 4 || data.toString("latin1", 4) !== context) throw new Error("the context can't be had");
      await optionReply(reader, option.setMetaContext);
    }
    socket.write(optionBytes(option.go, Buffer.alloc(6))); // the empty name, no information wanted
    let size = 0;
    let transmissionFlags = 0;
    for (;;) {
      const { type, data } = await optionReply(reader, option.go);
      if (type === 1) return new NbdClient(reader, size, transmissionFlags);
      if (data.readUInt16BE(0) === 0) {
        size = Number(data.readBigUInt64BE(2));
        transmissionFlags = data.readUInt16BE(10);
      }
    }
  }

  /** The bytes of a request, for those who want to send only some of them. */
  static requestBytes(type: number, offset: number | bigint, length: number, cookie: bigint, flags = 0): Buffer {
    const header = Buffer.alloc(28);
    header.writeUInt32BE(REQUEST_MAGIC, 0);
    header.writeUInt16BE(flags, 4);
    header.writeUInt16BE(type, 6);
    header.writeBigUInt64BE(cookie, 8);
    header.writeBigUInt64BE(BigInt(offset), 16);
    header.writeUInt32BE(length, 24);
    return header;
  }

  read(offset: number | bigint, length: number): Promise<Reply> {
    return this.request(command.read, offset, length);
  }

  write(offset: number | bigint, data: Uint8Array, flags = 0): Promise<Reply> {
    return this.request(command.write, offset, data.length, flags, data);
  }

  flush(): Promise<Reply> {
    return this.request(command.flush, 0, 0);
  }

  request(
    type: number,
    offset: number | bigint,
    length: number,
    flags = 0,
    payload: Uint8Array = new Uint8Array(0),
  ): Promise<Reply> {
    const cookie = this.#cookie++;
    return new Promise((resolve, reject) => {
      if (this.socket.destroyed) {
        reject(new Disconnected("the connection is closed"));
        return;
      }
      const data = Buffer.alloc(type === command.read ? length : 0);
      this.#pending.set(cookie, { data, extents: [], offset: BigInt(offset), error: 0, resolve, reject });
      this.socket.write(NbdClient.requestBytes(type, offset, length, cookie, flags));
      if (payload.length > 0) this.socket.write(payload);
    });
  }

  /** Says goodbye and waits until the server has closed. */
  async close(): Promise<void> {
    if (this.socket.destroyed) return;
    const closed = once(this.socket, "close");
    this.socket.end(NbdClient.requestBytes(command.disc, 0, 0, 0n));
    await closed;
  }

  async #receive(): Promise<void> {
    for (;;) {
      const magic = (await this.#reader.take(4)).readUInt32BE(0);
      if (magic === SIMPLE_REPLY_MAGIC) await this.#simpleReply();
      else if (magic === STRUCTURED_REPLY_MAGIC) await this.#structuredReply();
      else throw new Error(`bad magic number of a reply: ${magic.toString(16)}`);
    }
  }

  async #simpleReply(): Promise<void> {
    const header = await this.#reader.take(12);
    const error = header.readUInt32BE(0);
    const cookie = header.readBigUInt64BE(4);
    const pending = this.#find(cookie);
    if (error === 0 && pending.data.length > 0) (await this.#reader.take(pending.data.length)).copy(pending.data);
    this.#finish(cookie, error);
  }

  async #structuredReply(): Promise<void> {
    const header = await this.#reader.take(16);
    const flags = header.readUInt16BE(0);
    const type = header.readUInt16BE(2);
    const cookie = header.readBigUInt64BE(4);
    const payload = await this.#reader.take(header.readUInt32BE(12));
    const pending = this.#find(cookie);
    if (type === chunk.data) {
      payload.copy(pending.data, Number(payload.readBigUInt64BE(0) - pending.offset), 8);
    } else if (type === chunk.blockStatus) {
      for (let at = 4; at < payload.length; at += 8) {
        pending.extents.push({ length: payload.readUInt32BE(at), flags: payload.readUInt32BE(at + 4) });
      }
    } else if (type === chunk.error || type === chunk.errorOffset) {
      pending.error = payload.readUInt32BE(0);
    } else if (type !== chunk.none && type !== chunk.hole) {
      throw new Error(`unknown chunk ${type}`);
    }
    if ((flags & DONE) !== 0) this.#finish(cookie, pending.error);
  }

  #find(cookie: bigint): Pending {
    const pending = this.#pending.get(cookie);
    if (pending === undefined) throw new Error(`a reply to no request: ${cookie}`);
    return pending;
  }

  #finish(cookie: bigint, error: number): void {
    const pending = this.#find(cookie);
    this.#pending.delete(cookie);
    pending.resolve({ error, data: pending.data, extents: pending.extents });
  }
}

function optionBytes(number: number, data: Buffer): Buffer {
  const header = Buffer.alloc(16);
  header.writeBigUInt64BE(OPTION_MAGIC, 0);
  header.writeUInt32BE(number, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

async function optionReply(reader: Reader, number: number): Promise<{ type: number; data: Buffer }> {
  const header = await reader.take(20);
  const type = header.readUInt32BE(12);
  const data = await reader.take(header.readUInt32BE(16));
  if (header.readUInt32BE(8) !== number || type >= 0x8000_0000) {
    throw new Error(`option ${number} was refused: ${type.toString(16)} ${data.toString()}`);
  }
  return { type, data };
}
