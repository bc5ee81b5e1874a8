import {
  frontEndClosed,
  frontEndRequest,
  type Records,
  recordWords,
  requestKind,
  response,
  SECTOR,
  signedWord,
  tdRequest,
  word,
} from "../engine/records.ts";
import { errno } from "./errno.ts";
import { Queue, RequestTable } from "./request-table.ts";

/** How long a request is retried that fails with `EAGAIN`, `EBUSY` or `EINTR`, counted from its arrival. */
const RETRY_FOR_MS = 120_000;
/** Time between two attempts after `EAGAIN` or `EINTR`; after `EBUSY` the next turn tries again. */
const RETRY_INTERVAL_MS = 1_000;

const TWO_TO_32 = 2 ** 32;

/** Requests that a vbd has room for before its table grows. */
const INITIAL_REQUESTS = 1024;

function isTransient(status: number): boolean {
  return status === -errno.EAGAIN || status === -errno.EBUSY || status === -errno.EINTR;
}

/** What a vbd has to know of its disk. */
export interface VbdDisk {
  /** Capacity. */
  readonly sectors: number;
  readonly readOnly: boolean;
}

/**
 * A virtual block device: takes requests of front ends through the queues `new`, `pending`, `failed` and `completed` to
 * the engine and back.
 *
 * One turn calls {@link pullRequests}, {@link issueRequests}, {@link completeTdRequests} and {@link kick}, in this order.
 * Times are milliseconds of any clock that doesn't jump; the vbd reads none itself.
 *
 * How it answers by itself, without the engine: a malformed request with the front end's error; an unknown kind with
 * `EOPNOTSUPP`; one that writes to a read-only disk with `EPERM`; one of no sectors with `EINVAL`; one beyond the end with
 * `ENOSPC` if it writes and `EINVAL` otherwise. The NBD protocol wants these; a ring's answer knows one error only.
 */
export class Vbd {
  readonly newRequests: Queue;
  readonly pendingRequests: Queue;
  readonly failedRequests: Queue;
  readonly completedRequests: Queue;
  readonly #table: RequestTable;
  readonly #records: Records;
  readonly #frontEndClosed: (frontEnd: number) => void;
  #sectors = 0;
  #readOnly = true;
  #retrying = true;
  /** When the first of the failed requests is due; infinite when there is none. */
  #nextDue = Number.POSITIVE_INFINITY;
  /** Td requests written in this turn. */
  #issued = 0;

  /** A vbd without a disk: one of no sectors. `onFrontEndClosed` gets the port's number of a front end that has gone. */
  constructor(records: Records, onFrontEndClosed: (frontEnd: number) => void) {
    this.#records = records;
    this.#frontEndClosed = onFrontEndClosed;
    this.#table = new RequestTable(INITIAL_REQUESTS, recordWords.maxSegments);
    this.newRequests = new Queue(this.#table);
    this.pendingRequests = new Queue(this.#table);
    this.failedRequests = new Queue(this.#table);
    this.completedRequests = new Queue(this.#table);
  }

  /** Gives the vbd its disk. */
  open(disk: VbdDisk): void {
    this.#sectors = disk.sectors;
    this.#readOnly = disk.readOnly;
  }

  /** The disk has more sectors now. */
  grow(sectors: number): void {
    this.#sectors = sectors;
  }

  /** From now on errors that may pass are answered as they are: the disk is about to be closed. */
  stopRetrying(): void {
    this.#retrying = false;
    while (this.failedRequests.length > 0) {
      this.completedRequests.push(this.failedRequests.shift());
    }
    this.#nextDue = Number.POSITIVE_INFINITY;
  }

  /** Whether no request is anywhere on its way. */
  get idle(): boolean {
    return (
      this.newRequests.length === 0 &&
      this.pendingRequests.length === 0 &&
      this.failedRequests.length === 0 &&
      this.completedRequests.length === 0
    );
  }

  /** Milliseconds after which the vbd has something to do though nothing happens; infinite if nothing is planned. */
  timeout(now: number): number {
    if (this.newRequests.length > 0 || this.completedRequests.length > 0) {
      return 0;
    }
    return Math.max(0, this.#nextDue - now);
  }

  /** Takes the first `count` records of the requests area as new requests. */
  pullRequests(count: number, now: number): void {
    const first = this.#records.layout.requests.offset >>> 2;
    for (let index = 0; index < count; index++) {
      this.#moveRequest(first + index * recordWords.frontEndRequest, now);
    }
  }

  /**
   * Hands failed requests that are due again, and new ones, to the engine, as far as the td requests area has room.
   * @returns the number of records in the td requests area
   */
  issueRequests(now: number): number {
    this.#issued = 0;
    if (now >= this.#nextDue) {
      this.#reissueFailedRequests(now);
    }
    this.#issueNewRequests();
    return this.#issued;
  }

  /** Takes the first `count` records of the finished area. */
  completeTdRequests(count: number, now: number): void {
    const { words, signed, layout } = this.#records;
    let at = layout.finished.offset >>> 2;
    for (let index = 0; index < count; index++) {
      this.completeTdRequest(word(words, at), signedWord(signed, at + 1), now);
      at += recordWords.finished;
    }
  }

  /** A td request of `request` is over, with a status as the engine gives it. */
  completeTdRequest(request: number, status: number, now: number): void {
    const table = this.#table;
    // An error that stays wins over one that may pass: no use in retrying then.
    if (status !== 0) {
      const before = signedWord(table.status, request);
      if (before === 0 || (isTransient(before) && !isTransient(status))) {
        table.status[request] = status;
      }
    }
    const left = word(table.tdPending, request) - 1;
    table.tdPending[request] = left;
    if (left === 0) {
      this.pendingRequests.remove(request);
      this.#completeRequest(request, now);
    }
  }

  /**
   * Writes the answers to completed requests, as many as there is room for; the port notifies each front end once for all.
   * @returns the number of records in the responses area
   */
  kick(): number {
    const table = this.#table;
    const { words, signed, layout } = this.#records;
    const count = Math.min(this.completedRequests.length, layout.responses.capacity);
    let at = layout.responses.offset >>> 2;
    for (let index = 0; index < count; index++) {
      const request = this.completedRequests.shift();
      words[at + response.frontEnd] = word(table.frontEnd, request);
      words[at + response.slot] = word(table.slot, request);
      const status = signedWord(table.status, request);
      signed[at + response.status] = Math.min(status, 0);
      words[at + response.payload] = Math.max(status, 0);
      at += recordWords.response;
      table.release(request);
    }
    return count;
  }

  /** Makes the record at word `at` a vbd request: new, or completed at once if there is something wrong with it. */
  #moveRequest(at: number, now: number): void {
    const { words, signed } = this.#records;
    const header = word(words, at + frontEndRequest.operation);
    const frontEnd = word(words, at + frontEndRequest.frontEnd);
    const kind = header & 0xff;
    if (kind === frontEndClosed) {
      this.#frontEndClosed(frontEnd);
      return;
    }
    const table = this.#table;
    const request = table.allocate();
    table.frontEnd[request] = frontEnd;
    table.slot[request] = word(words, at + frontEndRequest.slot);
    table.kind[request] = header & 0xffff;
    table.region[request] = word(words, at + frontEndRequest.region);
    table.tdPending[request] = 0;
    table.arrived[request] = now;
    // Past 2^53 this is rounded, but still behind the end of any disk.
    const sector = word(words, at + frontEndRequest.sectorHigh) * TWO_TO_32 + word(words, at + frontEndRequest.sector);
    table.sector[request] = sector;

    let status = signedWord(signed, at + frontEndRequest.error);
    if (status === 0) {
      const segments = (header >>> 16) & 0xff;
      const sectors =
        segments > 0
          ? this.#joinSegments(request, at + frontEndRequest.segments, segments)
          : this.#dataless(request, word(words, at + frontEndRequest.sectors));
      status = this.#check(kind, sector, sectors);
    }
    table.status[request] = status;
    if (status === 0) {
      this.newRequests.push(request);
    } else {
      this.completedRequests.push(request);
    }
  }

  /** Copies a request's segments as its parts, neighbours in memory joined. Returns their sectors. */
  #joinSegments(request: number, segments: number, count: number): number {
    const table = this.#table;
    const { words } = this.#records;
    const { parts } = table;
    const first = request * table.partWords;
    let part = first - 2;
    let end = -1;
    let total = 0;
    for (let index = 0; index < count; index++) {
      const buffer = word(words, segments + 2 * index);
      const sectors = word(words, segments + 2 * index + 1);
      if (buffer === end) {
        parts[part + 1] = word(parts, part + 1) + sectors;
      } else {
        part += 2;
        parts[part] = buffer;
        parts[part + 1] = sectors;
      }
      end = buffer + sectors * SECTOR;
      total += sectors;
    }
    table.partCount[request] = (part - first) / 2 + 1;
    return total;
  }

  /** Gives a request without data its one part. Returns its sectors. */
  #dataless(request: number, sectors: number): number {
    const table = this.#table;
    table.partCount[request] = 1;
    table.parts[request * table.partWords] = 0;
    table.parts[request * table.partWords + 1] = sectors;
    return sectors;
  }

  /** 0, or the negative errno value that refuses a request. */
  #check(kind: number, sector: number, sectors: number): number {
    if (kind === requestKind.flush) {
      return 0;
    }
    if (kind > requestKind.blockStatus) {
      return -errno.EOPNOTSUPP;
    }
    const writes = kind !== requestKind.read && kind !== requestKind.blockStatus;
    if (writes && this.#readOnly) {
      return -errno.EPERM;
    }
    if (sectors === 0) {
      return -errno.EINVAL;
    }
    if (sector + sectors > this.#sectors) {
      return kind === requestKind.write || kind === requestKind.writeZeroes ? -errno.ENOSPC : -errno.EINVAL;
    }
    return 0;
  }

  #reissueFailedRequests(now: number): void {
    const table = this.#table;
    this.#nextDue = Number.POSITIVE_INFINITY;
    for (let left = this.failedRequests.length; left > 0; left--) {
      const request = this.failedRequests.shift();
      const due = float(table.due, request);
      if (due <= now && this.#hasRoom()) {
        table.status[request] = 0;
        this.#issueRequest(request);
      } else {
        this.failedRequests.push(request);
        this.#nextDue = Math.min(this.#nextDue, due);
      }
    }
  }

  #issueNewRequests(): void {
    while (this.newRequests.length > 0 && this.#hasRoom()) {
      this.#issueRequest(this.newRequests.shift());
    }
  }

  #hasRoom(): boolean {
    return this.#issued + recordWords.maxSegments <= this.#records.layout.tdRequests.capacity;
  }

  /** Makes each part of a request a td request. */
  #issueRequest(request: number): void {
    const table = this.#table;
    const { words, layout } = this.#records;
    const kind = word(table.kind, request);
    const region = word(table.region, request);
    const count = word(table.partCount, request);
    let sector = float(table.sector, request);
    let part = request * table.partWords;
    let at = (layout.tdRequests.offset >>> 2) + this.#issued * recordWords.tdRequest;
    for (let index = 0; index < count; index++) {
      const sectors = word(table.parts, part + 1);
      words[at + tdRequest.tag] = request;
      words[at + tdRequest.kind] = kind;
      words[at + tdRequest.sector] = sector;
      words[at + tdRequest.sectorHigh] = sector / TWO_TO_32;
      words[at + tdRequest.sectors] = sectors;
      words[at + tdRequest.region] = region;
      words[at + tdRequest.buffer] = word(table.parts, part);
      words[at + tdRequest.reserved] = 0;
      sector += sectors;
      part += 2;
      at += recordWords.tdRequest;
    }
    this.#issued += count;
    table.tdPending[request] = count;
    this.pendingRequests.push(request);
  }

  /** All parts of a request are back: it is completed, or failed and will be tried again. */
  #completeRequest(request: number, now: number): void {
    const table = this.#table;
    const status = signedWord(table.status, request);
    const retry = isTransient(status) && this.#retrying && now - float(table.arrived, request) < RETRY_FOR_MS;
    if (!retry) {
      this.completedRequests.push(request);
      return;
    }
    const due = status === -errno.EBUSY ? now : now + RETRY_INTERVAL_MS;
    table.due[request] = due;
    this.failedRequests.push(request);
    this.#nextDue = Math.min(this.#nextDue, due);
  }
}

function float(numbers: Float64Array, index: number): number {
  return numbers[index] as number;
}
